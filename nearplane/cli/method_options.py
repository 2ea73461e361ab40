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
    flags = [flag_of(field.name), flag_of(field.name, False)]
    declaration = "/".join(flags) if field.type is bool else flags[0]
    return typer.Option(declaration, help=help_of(field), rich_help_panel="Options of the methods")


def help_of(field: dataclasses.Field) -> str:
    """Return the help text of a field: its meaning, the methods that have it, and its default."""
    scope = f"{', '.join(methods_with(field.name))}; default {defaults(field.name)}"
    return f"{meaning(field.name)} ({scope})"


def defaults(field: str) -> str:
    """Return a field's default, or those of the methods where they differ."""
    by_value: dict[str, list[str]] = {}
    for name in methods_with(field):
        value = shown(field, fields_of(METHODS[name])[field].default)
        by_value.setdefault(value, []).append(name)
    if len(by_value) == 1:
        return next(iter(by_value))
    return ", ".join(f"{value} of {' and '.join(names)}" for value, names in by_value.items())


def shown(field: str, default: Any) -> str:
    """Return a default as it is written on the command line."""
    if isinstance(default, bool):
        return flag_of(field, default)
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def flag_of(field: str, value: bool = True) -> str:
    """Return the option of a field; of a bool, the one that gives it a value."""
    return f"--{'' if value else 'no-'}{field.replace('_', '-')}"


def meaning(field: str) -> str:
    """Return the text of "- `field`: ..." in the first method's docstring that has it, if any.

    What is said of False is said of --no-NAME.
    """
    for name in methods_with(field):
        line = re.search(rf"- `{field}`: (.*?)\.?\n(?! {{6}})", METHODS[name].__doc__ or "", re.S)
        if line:
            text = re.sub(r"^False\b", flag_of(field, False), " ".join(line[1].split()))
            return text.replace("`", "")[0].upper() + text.replace("`", "")[1:]
    return f"The field {field} of the method"


def method_help() -> str:
    """Return the help text of --method."""
    return f"One of {names()}: what each does is in README.md; options below name theirs"


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
