"""Report every failure as one sentence on stderr and an exit status."""

import functools
import inspect
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from nearplane.types import NearplaneError

INTERRUPTED = 130
TERMINATED = 143


Debug = Annotated[bool, typer.Option("--debug", help="Show where in the code an error was raised")]


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that prints any error in one line and exits with status 1.

    It has the option --debug, which prints the traceback before that line.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (BrokenPipeError, typer.Exit, typer.Abort, typer.BadParameter):
            raise  # typer's own, or the program that reads our output has ended
        except Exception as error:
            if debug:
                typer.echo(traceback.format_exc(), err=True)
            typer.echo(f"error: {sentence(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt

    added = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug
    )
    signature = inspect.signature(command)
    named: Any = run
    named.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    named.__annotations__ = getattr(command, "__annotations__", {}) | {"debug": Debug}
    return run


def sentence(error: Exception) -> str:
    """Return the message of an error in one line; one that nobody expected begins with its name."""
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror}"
    said = " ".join(str(error).split())
    if isinstance(error, NearplaneError | OSError):
        return said or type(error).__name__
    return f"{type(error).__name__}: {said} (a fault of nearplane; --debug shows where)"


def exit_when_terminated() -> None:
    """Let SIGTERM raise SystemExit, so that context managers remove unfinished files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
