"""Command line options made from the fields of the registered methods.

A new method gets its options without a change here.
"""

import dataclasses
import inspect
import re
from typing import Annotated, Any

import typer

from nearplane.methods import METHODS, Method
from nearplane.types import NearplaneError


def names() -> str:
    """Return the names of all methods, separated by commas."""
    return ", ".join(sorted(METHODS))


def fields_of(method: type[Method]) -> dict[str, dataclasses.Field]:
    """Return the hyper-parameters of a method, by name."""
    return {field.name: field for field in dataclasses.fields(method)}


def methods_with(field: str) -> list[str]:
    """Return the names of the methods that have a field."""
    return [name for name in sorted(METHODS) if field in fields_of(METHODS[name])]


def all_fields() -> dict[str, dataclasses.Field]:
    """Return the fields of all methods together, by name."""
    union: dict[str, dataclasses.Field] = {}
    for name in sorted(METHODS):
        union = fields_of(METHODS[name]) | union
    return union


def method_parameters() -> list[inspect.Parameter]:
    """Return one option for every field; its default is None, so that the method's own applies."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[field.type | None, option(field)],
        )
        for name, field in all_fields().items()
    ]


def option(field: dataclasses.Field) -> Any:
    """Return the typer option of a field; a bool gets --NAME and --no-NAME."""
    flag = f"--{field.name.replace('_', '-')}"
    declaration = f"{flag}/--no-{flag[2:]}" if field.type is bool else flag
    return typer.Option(declaration, help=help_of(field), rich_help_panel="Options of the methods")


def help_of(field: dataclasses.Field) -> str:
    """Return the help text of a field: its meaning, the methods that have it, and its default."""
    description = meaning(field.name)
    scope = f"{', '.join(methods_with(field.name))}; default {field.default}"
    return f"{description} ({scope})" if description else scope[0].upper() + scope[1:]


def meaning(field: str) -> str:
    """Return the text of "- `field`: ..." in the first method's docstring that has it, or ""."""
    for name in methods_with(field):
        line = re.search(rf"- `{field}`: (.*?)\.?\n(?! {{6}})", METHODS[name].__doc__ or "", re.S)
        if line:
            text = " ".join(line[1].split())
            return text[0].upper() + text[1:]
    return ""


def method_help() -> str:
    """Return the help text of --method: all methods with their fields."""
    listed = [f"{name} ({', '.join(fields_of(METHODS[name]))})" for name in sorted(METHODS)]
    return "One of " + ", ".join(listed)


def chosen(name: str, options: dict[str, Any]) -> Method:
    """Return the method called `name` with the options that are not None.

    Raises NearplaneError for an unknown method, an option of another one, or a value out of range.
    """
    method = METHODS.get(name.lower())
    if method is None:
        raise NearplaneError(f"no method is called {name!r}; there are {names()}")
    known = all_fields()
    given = {key: value for key, value in options.items() if key in known and value is not None}
    for key in given:
        if key not in fields_of(method):
            raise NearplaneError(
                f"--{key.replace('_', '-')} is no option of {method.name}, "
                f"but of {', '.join(methods_with(key))}"
            )
    try:
        return method(**given)
    except ValueError as error:
        raise NearplaneError(f"{method.name}: {error}") from error
