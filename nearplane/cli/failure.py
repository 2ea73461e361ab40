"""Report every failure as one sentence on stderr and an exit status."""

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from nearplane.types import NearplaneError

INTERRUPTED = 130
TERMINATED = 143


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that prints errors of the input in one line and exits with status 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the program that reads our output has ended; typer exits without a message
        except (NearplaneError, OSError) as error:
            typer.echo(f"error: {sentence(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt

    return run


def sentence(error: Exception) -> str:
    """Return the message of an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def exit_when_terminated() -> None:
    """Let SIGTERM raise SystemExit, so that context managers remove unfinished files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
