"""The table of commands. Their modules import torch and transformers only when they run."""

import typer

from nearplane.cli import (
    demo,
    evaluate,
    explore,
    export,
    plan,
    push,
    quantize,
    report,
    serve,
    verify,
)
from nearplane.cli.failure import explained
from nearplane.cli.whole_help import WholeHelp, summary

app = typer.Typer(
    help="Compress large language models by solving every layer as a closest-vector problem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # nearplane/cli/whole_help.py
)

COMMANDS = (
    (
        "quantize",
        quantize.quantize,
        "nearplane quantize HuggingFaceTB/SmolLM2-135M out --bpw 3.125 --calibration notes.txt",
    ),
    ("plan", plan.plan, "nearplane plan HuggingFaceTB/SmolLM2-135M --method gptq --bits 4"),
    ("verify", verify.verify, "nearplane verify out --against HuggingFaceTB/SmolLM2-135M"),
    ("inspect", verify.inspect, "nearplane inspect out"),
    ("report", report.report, "nearplane report out"),
    ("compare", report.compare, "nearplane compare out out4 --html compare.html"),
    ("eval", evaluate.evaluate, "nearplane eval out --text test.txt --context 1024"),
    ("run", evaluate.run, 'nearplane run out "The nearest plane is" --tokens 32'),
    ("serve", serve.serve, "nearplane serve out --port 8000"),
    ("push", push.push, "nearplane push out me/SmolLM2-135M-nearplane --dry-run"),
    ("export", export.export, "nearplane export out plain --to transformers"),
    ("import", export.import_checkpoint, "nearplane import model-gptq-4bit out"),
    ("formats", export.list_formats, "nearplane formats"),
    ("explore", explore.explore, "nearplane explore --no-open"),
    ("demo", demo.demo, "nearplane demo"),
)

for name, command, example in COMMANDS:
    made = app.command(
        name, cls=WholeHelp, short_help=summary(command), epilog=f"Example: {example}"
    )
    made(explained(command))
