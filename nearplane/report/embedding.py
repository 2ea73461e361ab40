"""Put data, scripts and styles into an HTML page so that no name in the data can become code."""

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from nearplane.report.layer_lines import LayerLine

HERE = Path(__file__).parent
# what ends a script, begins a comment in it, or ends a line of JavaScript
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
PLOT = "vendor/plot.min.js"
LICENCES = "vendor/plot.LICENSES.txt"


def script_json(data: Any) -> str:
    """Return data as JSON that may stand inside a <script> element; NaN is refused."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character, escape in ESCAPED.items():
        text = text.replace(character, escape)
    return text


@functools.cache
def content(name: str) -> str:
    """Return the text of a file of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def policy(scripts: list[str]) -> str:
    """Return a content security policy that runs these scripts alone, and loads nothing.

    Images inside the page are allowed: a legend's ramp of colours is one.
    """
    hashes = " ".join(f"'sha256-{digest(each)}'" for each in scripts)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"


def digest(script: str) -> str:
    """Return the SHA-256 of a script as a content security policy has it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def page(template: str, scripts: tuple[str, ...], data: Any, **shown: Any) -> bytes:
    """Return a template of `templates/` as a page; everything that it shows is escaped.

    - `scripts`: the files of those that run, in order; Observable Plot is one of them.
    - `data`: for the scripts, in the element "data".
    """
    from markupsafe import Markup

    sources = [content(name) for name in scripts]
    text = (
        environment()
        .get_template(template)
        .render(
            policy=policy(sources),
            style=Markup(content("templates/style.css")),
            scripts=[Markup(source) for source in sources],
            licences=content(LICENCES),
            data=Markup(script_json(data)),
            **shown,
        )
    )
    # half characters, which JSON may escape, are in no HTML
    return text.encode(errors="replace")


@functools.cache
def environment() -> Any:
    """Return the templates' environment, which escapes all that is not Markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"error": error_text, "bits": bits_text, "count": count_text}
    made.filters["cell"] = cell_text
    return made


def cell_text(layer: LayerLine, key: str) -> str:
    """Return what the table of all layers shows of a layer, as table.js does."""
    if key == "shape":
        return f"{layer.rows}×{layer.columns}"
    value = getattr(layer, key)
    if key in ("bpw", "loss_over_bound"):
        return bits_text(value)
    if key in ("stored_bytes", "tokens"):
        return count_text(value)
    return value if key in ("name", "warning") else error_text(value)


def error_text(number: int | float | None) -> str:
    """Return a number with two decimals and a power of ten, as charts.js does; a dash for None."""
    if number is None:
        return "–"
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def bits_text(number: int | float | None, digits: int = 3) -> str:
    """Return a number with so many decimals; a dash for None."""
    return "–" if number is None else f"{number:.{digits}f}"


def count_text(number: int | float | None) -> str:
    """Return a whole number with commas; a dash for None."""
    return "–" if number is None else f"{number:,.0f}"
