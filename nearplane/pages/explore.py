"""The page of `nearplane explore`: sources of a folder put together into one HTML file."""

import json
import re
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).with_suffix("")
# each imports only those before it
MODULES = (
    *("matrices", "lattice", "reduce", "rate", "elements", "cells", "plot"),
    *("problem", "picture", "numbers", "story", "controls", "space", "layer", "main"),
)
IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function|class) (\w+))", re.MULTILINE)
COMMENT = re.compile(r"^ *(?:// .*|/\*\*(?:.|\n)*?\*/)\n", re.MULTILINE)


def page(layer: dict[str, Any] | None = None) -> str:
    """Return the page, which needs no other file and no network.

    - `layer`: what `layer_section` returns, to show a layer of a checkpoint beside the story.
    """
    parts = {
        "style": read("style.css"),
        "layer": "" if layer is None else for_script(json.dumps(layer, allow_nan=False)),
        "three": read("three.min.js"),
        "scripts": "\n".join(wrapped(name) for name in MODULES),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read("page.html"))


def read(name: str) -> str:
    """Return the text of a file of the page's sources."""
    return (SOURCES / name).read_text(encoding="utf-8")


def wrapped(name: str) -> str:
    """Return a module as a function that returns what it exports, under the module's name.

    So all modules lie in one script, and no name of one meets a name of another.
    """
    source = COMMENT.sub("", read(f"{name}.js"))
    exported = ", ".join(EXPORT.findall(source))
    body = IMPORT.sub(imported, EXPORT.sub("", source))
    return f"const {name}_module = (() => {{\n{body}return {{ {exported} }};\n}})();"


def imported(found: re.Match[str]) -> str:
    """Return an import statement as an assignment of what the other module's function returned."""
    everything, names, module = found.groups()
    left = everything or "{ " + " ".join(names.replace(" as ", ": ").split()) + " }"
    return f"const {left} = {module}_module;\n"


def for_script(text: str) -> str:
    """Return JSON that no browser takes for the end of the script element that holds it."""
    return text.replace("<", "\\u003c")
