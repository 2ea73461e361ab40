"""The command line: parse arguments, call the other folders, print the results.

- Comes in: the arguments of the command `nearplane`.
- Goes out: results on stdout, progress and errors on stderr, and an exit status: 0, 1 for an error
  that is explained in one line, 2 for wrong arguments, 130 when interrupted, 143 when terminated.
- This folder may import every other one, and none imports it. It computes nothing itself.

Read `app.py` first.

| file | what it does |
|---|---|
| app | the table of commands |
| quantize, plan | the commands of these names; run_settings has the options that both take |
| verify | the commands verify and inspect |
| report | the commands report and compare |
| layer_tables | tables and charts of layers for the terminal |
| evaluate | the commands eval and run |
| export | the commands export and formats |
| demo | the command demo |
| options | options that several commands share |
| method_options | options made from the fields of the registered methods |
| progress | a progress bar on a terminal, plain lines elsewhere |
| whole_help | the text of --help, in which no word is cut |
| failure | reports every failure as one sentence and an exit status |
| quiet | silences transformers and huggingface_hub |

To add a command, write a function whose parameters are annotated for typer, and add it to
`COMMANDS` in `app.py`. Import torch, transformers and the other folders inside the function, so
that `nearplane --help` stays fast. A new method gets its options without a change here.
"""


def main() -> None:
    """Run the command line."""
    from nearplane.cli.app import app
    from nearplane.cli.failure import exit_when_terminated

    exit_when_terminated()
    app()
