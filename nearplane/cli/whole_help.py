"""The text of --help: plain, in sections, and whole in a narrow terminal: no word is cut."""

import textwrap
from typing import Any

from typer.core import TyperCommand

ARGUMENTS, OPTIONS = "Arguments", "Options"
WIDEST_NAMES = 28  # characters of an option's names that its text still stands beside


class WholeHelp(TyperCommand):
    """A command whose help lists its options under their `rich_help_panel`, in two columns.

    typer's own tables give an option's type a column, and in 80 columns cut what is left. Neither
    words nor names with hyphens are broken here.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(section_of(parameter), []).append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write(two_columns(records, formatter.width))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example so that its lines can be typed as they stand."""
        lines = wrapped(self.epilog or "", formatter.width - 4)
        formatter.write_paragraph()
        formatter.write(" \\\n    ".join(lines) + "\n")


def two_columns(records: list[tuple[str, str]], width: int) -> str:
    """Return names and texts as lines of at most `width` characters, longer words excepted."""
    beside = max((len(name) for name, _ in records if len(name) <= WIDEST_NAMES), default=0) + 4
    lines = []
    for name, text in records:
        first, *others = wrapped(text, width - beside) or [""]
        if len(name) > WIDEST_NAMES:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name}".ljust(beside) + first)
        lines += [" " * beside + line for line in others]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def wrapped(text: str, width: int) -> list[str]:
    """Return a text as lines that end between words."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def section_of(parameter: Any) -> str:
    """Return the title that a parameter is listed under."""
    plain = ARGUMENTS if parameter.param_type_name == "argument" else OPTIONS
    return getattr(parameter, "rich_help_panel", None) or plain


def summary(command: Any) -> str:
    """Return the first sentence of a command's docstring, for the list of commands."""
    return " ".join((command.__doc__ or "").split("\n\n")[0].split())
