"""The names of a checkpoint's files, and the `quantization_config` that its config.json holds."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from reprlib import repr
from typing import Any

from nearplane.types import LayerReport, NearplaneError

METHOD = "nearplane"
FORMAT_VERSION = 1
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
RECORD = ".record"
ADAPTER = "adapter_config.json"  # transformers would add the LoRA weights it names
OTHER_WEIGHTS = "transformers_weights"  # a key of config.json: another file to read instead
METADATA = {"format": "pt"}
DIGITS = 7  # significant digits to which the numbers of a certificate are rounded

# fields of LayerReport that config.json has in another place, or that differ from run to run
NOT_IN_CERTIFICATE = {"name", "method", "stored_bytes", "seconds", "log2_pivots"}
TEXT_FIELDS = {field.name for field in dataclasses.fields(LayerReport) if field.type is str}
DICT_FIELDS = {"facts"}
MAX_NAME_LENGTH = 1000  # characters in the name of a layer or a tensor


def shard_name(number: int, count: int) -> str:
    """Return the file name of safetensors shard `number` of `count`; the first has number 1."""
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def quantization_config(recipe: dict[str, Any], reports: Iterable[LayerReport]) -> dict[str, Any]:
    """Return the `quantization_config` of config.json.

    - `recipe`: the method and its settings.
    - `reports`: one report for every layer that was compressed.
    """
    from nearplane.version import __version__

    return {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "nearplane_version": __version__,
        "recipe": recipe,
        "layers": {report.name: layer_entry(report) for report in reports},
    }


def layer_entry(report: LayerReport) -> dict[str, Any]:
    """Return the JSON object that config.json stores for one layer.

    It has the shape, the stored bytes and the certificate; empty strings and dictionaries are left
    out.
    """
    fields = dataclasses.asdict(report)
    entry = {k: v for k, v in fields.items() if k not in NOT_IN_CERTIFICATE and v not in ("", {})}
    return rounded({"bytes": report.stored_bytes} | entry)


def rounded(value: Any) -> Any:
    """Return `value` with floats rounded to `DIGITS` digits, and None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def special_floats(value: Any) -> Any:
    """Return `value` with infinities and NaN as transformers writes them into config.json.

    {"__float__": "Infinity"}
    """
    if isinstance(value, dict):
        return {key: special_floats(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [special_floats(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"__float__": name}
    return value


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return `value` as the bytes of a JSON file; equal dictionaries give equal bytes.

    NearplaneError if JSON cannot hold a part of it.
    """
    try:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NearplaneError(f"this cannot be written as JSON: {error}") from error


def is_safe_path(name: str) -> bool:
    """Whether `name` is a relative path inside the checkpoint that SHA256SUMS can list."""
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and "\\" not in name and name == str(PurePosixPath(name))
    return bool(parts) and plain and name[0] != "/" and not any(p.startswith(".") for p in parts)


def is_name(name: str) -> bool:
    """Whether `name` may be the name of a layer or a tensor: printable, and not too long."""
    return name.isprintable() and len(name) <= MAX_NAME_LENGTH


def check_quantization_config(config: Any, source: str) -> dict[str, dict[str, Any]]:
    """Return `layers` of a `quantization_config` after checking everything that readers rely on.

    NearplaneError if it is malformed, or if only a newer nearplane reads it.

    - `source`: where it comes from, such as the path of config.json; errors begin with it.
    """
    if not isinstance(config, dict) or config.get("quant_method") != METHOD:
        raise NearplaneError(f"{source} is not of a nearplane checkpoint")
    _check_version(config.get("format_version"), source)
    layers, recipe = config.get("layers"), config.get("recipe")
    if not isinstance(layers, dict):
        raise NearplaneError(f"{source} lists no compressed layers")
    if not isinstance(recipe, dict | None):
        raise NearplaneError(f"{source} has a recipe that is no JSON object")
    for name, entry in layers.items():
        if not is_name(name):
            raise NearplaneError(f"{source}: {repr(name)} is no layer's name")
        if not isinstance(entry, dict) or not all(
            _is_size(entry.get(key)) for key in ("bytes", "rows", "columns")
        ):
            raise NearplaneError(f"{source}: {name!r} needs bytes, rows and columns above zero")
        _check_certificate(name, entry, source)
    return layers


def _check_certificate(name: str, entry: dict[str, Any], source: str) -> None:
    """Raise NearplaneError if a value of a layer's certificate does not have the type it should."""
    for field in dataclasses.fields(LayerReport):
        key, found = field.name, entry.get(field.name)
        if key in TEXT_FIELDS:
            fits = found is None or (isinstance(found, str) and found.isprintable())
        elif key in DICT_FIELDS:
            fits = found is None or (
                isinstance(found, dict) and all(_is_number(part) for part in found.values())
            )
        else:
            fits = _is_number(found)
        if not fits and key not in NOT_IN_CERTIFICATE:
            raise NearplaneError(f"{source}: {name!r} has a {key} of the wrong type")


def _check_version(version: Any, source: str) -> None:
    if not _is_size(version):
        raise NearplaneError(f"{source} has no format_version that is a number: {repr(version)}")
    if version > FORMAT_VERSION:
        raise NearplaneError(
            f"{source} was made by a newer nearplane: format version {version}, "
            f"while this one reads up to {FORMAT_VERSION}; upgrade nearplane"
        )


def _is_number(value: Any) -> bool:
    """Whether `value` may stand for a number in a certificate; None is a number that is unknown."""
    small = type(value) is int and abs(value) < 2**63
    return value is None or isinstance(value, float) or small


def _is_size(value: Any) -> bool:
    """Whether `value` is an integer from 1 to 2⁶³ − 1."""
    # isinstance would accept True, which is an int
    return type(value) is int and 1 <= value < 2**63
