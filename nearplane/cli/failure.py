"""Every failure is one sentence on stderr and an exit status; no half-written file survives one."""

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
    """Return the command with NearplaneError and OSError as one sentence and exit status 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # somebody closed the pipe that is printed to; typer ends quietly
        except (NearplaneError, OSError) as error:
            typer.echo(f"error: {sentence(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt

    return run


def sentence(error: Exception) -> str:
    """Return what went wrong in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def exit_when_terminated() -> None:
    """Let SIGTERM raise SystemExit, so that what is half done is removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
