"""Options that several commands share, and commands that take their options from a dataclass."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

Arithmetic = Annotated[
    str,
    typer.Option(
        help="The type that products run in: float32, bfloat16 or float16; auto is the model's "
        "own, or float32 where this processor is slow at that"
    ),
]

TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python files that the model brings")
]

Command = TypeVar("Command", bound=Callable[..., None])


def parameters_of(settings: type) -> list[inspect.Parameter]:
    """Return one keyword parameter for every field of a dataclass.

    The fields are annotated with typer.Option, as parameters of a command are.
    """
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
        for field in dataclasses.fields(settings)
    ]


def with_options(*groups: list[inspect.Parameter]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command the parameters of `groups` in place of **options.

    typer reads the signature to make the command's options.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named += [parameter for group in groups for parameter in group]
        wanted: Any = command
        wanted.__signature__ = signature.replace(parameters=named)
        wanted.__annotations__ = {p.name: p.annotation for p in named}
        return command

    return decorate


def settings_from(settings: type, options: dict[str, Any]) -> Any:
    """Return a dataclass filled with those `options` that are among its fields."""
    names = {field.name for field in dataclasses.fields(settings)}
    return settings(**{name: value for name, value in options.items() if name in names})
