"""Command options made from the fields of the registered methods: a new method brings its own."""

import dataclasses
import inspect
import re
from typing import Annotated, Any

import typer

from nearplane.methods import METHODS, Method
from nearplane.types import NearplaneError


def names() -> str:
    """Return the methods' names for a sentence."""
    return ", ".join(sorted(METHODS))


def fields_of(method: type[Method]) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(method)}


def owners(field: str) -> list[str]:
    """Return the names of the methods that have a field."""
    return [name for name in sorted(METHODS) if field in fields_of(METHODS[name])]


def all_fields() -> dict[str, dataclasses.Field]:
    """Return the union of all methods' fields, by name."""
    union: dict[str, dataclasses.Field] = {}
    for name in sorted(METHODS):
        union = fields_of(METHODS[name]) | union
    return union


def method_parameters() -> list[inspect.Parameter]:
    """Return one option a field, None by default: the method knows better."""
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
    """Return the option of a field; a truth value gets a positive and a negative name."""
    flag = f"--{field.name.replace('_', '-')}"
    declaration = f"{flag}/--no-{flag[2:]}" if field.type is bool else flag
    return typer.Option(declaration, help=help_of(field), rich_help_panel="Options of the methods")


def help_of(field: dataclasses.Field) -> str:
    """Return what a field means, from its methods' docstrings, who has it, and its default."""
    meant = meaning(field.name)
    said = f"{', '.join(owners(field.name))}; default {field.default}"
    return f"{meant} ({said})" if meant else said[0].upper() + said[1:]


def meaning(field: str) -> str:
    """Return the line "- `field`: ..." of the first docstring that has one."""
    for name in owners(field):
        line = re.search(rf"- `{field}`: (.*?)\.?\n(?! {{6}})", METHODS[name].__doc__ or "", re.S)
        if line:
            text = " ".join(line[1].split())
            return text[0].upper() + text[1:]
    return ""


def method_help() -> str:
    """Return the methods with their fields, for --help."""
    listed = [f"{name} ({', '.join(fields_of(METHODS[name]))})" for name in sorted(METHODS)]
    return "One of " + ", ".join(listed)


def chosen(name: str, options: dict[str, Any]) -> Method:
    """Return the method called `name` with the options that were given.

    Raises NearplaneError for a name or an option that there is not, or a value out of range.
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
                f"but of {', '.join(owners(key))}"
            )
    try:
        return method(**given)
    except ValueError as error:
        raise NearplaneError(f"{method.name}: {error}") from error
