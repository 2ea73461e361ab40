"""The command line: parses arguments, calls the rooms, prints.

| file | idea |
|---|---|
| app | the table of commands |
| options | command options made from a dataclass's fields |
| method_options | command options made from the registered methods |
| failure | every failure is one sentence and an exit status |
| quiet | the libraries below keep their progress bars to themselves |
| progress | a bar on a terminal, plain lines elsewhere |
| quantizing | quantize, plan |
| checking | verify, inspect |
| using | eval, run |
| demo | the main job on a model and a text that are already there |

Nothing that takes long to import is imported before a command needs it.
"""


def main() -> None:
    """Run the command line."""
    from nearplane.cli.app import app
    from nearplane.cli.failure import exit_when_terminated

    exit_when_terminated()
    app()
