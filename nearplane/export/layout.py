"""What a checkpoint's files are called, and what its config.json says of the compressed layers."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from nearplane.types import LayerReport, NearplaneError

METHOD = "nearplane"
FORMAT_VERSION = 1
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
RECORD = ".record"
METADATA = {"format": "pt"}
DIGITS = 7  # of the numbers in a certificate

# Told elsewhere in config.json, or different in every run.
NOT_IN_CERTIFICATE = {"name", "method", "stored_bytes", "seconds"}


def shard_name(number: int, count: int) -> str:
    """Return the file name of shard `number`, the first being 1."""
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def quantization_config(recipe: dict[str, Any], reports: Iterable[LayerReport]) -> dict[str, Any]:
    """Return config.json's `quantization_config` for layers that `recipe` compressed."""
    from nearplane import __version__

    return {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "nearplane_version": __version__,
        "recipe": recipe,
        "layers": {report.name: layer_entry(report) for report in reports},
    }


def layer_entry(report: LayerReport) -> dict[str, Any]:
    """Return a layer's shape, stored bytes and certificate; empty strings and tables left out."""
    fields = dataclasses.asdict(report)
    entry = {k: v for k, v in fields.items() if k not in NOT_IN_CERTIFICATE and v not in ("", {})}
    return rounded({"bytes": report.stored_bytes} | entry)


def rounded(value: Any) -> Any:
    """Return `value` with floats rounded to `DIGITS` digits; None for those JSON cannot write."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return `value` as the format writes JSON: the same dictionary gives the same bytes."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:
        raise NearplaneError(f"this cannot be written as JSON: {error}") from error


def is_safe_path(name: str) -> bool:
    """Whether `name` is a relative path that stays in its directory and that sums can list."""
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and "\\" not in name and name == str(PurePosixPath(name))
    return bool(parts) and plain and name[0] != "/" and not any(p.startswith(".") for p in parts)


def check_quantization_config(config: Any, source: str) -> dict[str, dict[str, Any]]:
    """Return the layers of a `quantization_config`; NearplaneError unless this version reads it.

    - `source`: what the error names, such as the path of config.json.
    """
    if not isinstance(config, dict) or config.get("quant_method") != METHOD:
        raise NearplaneError(f"{source} is not of a nearplane checkpoint")
    _check_version(config.get("format_version"), source)
    layers = config.get("layers")
    if not isinstance(layers, dict):
        raise NearplaneError(f"{source} lists no compressed layers")
    for name, entry in layers.items():
        if not isinstance(entry, dict) or not all(
            _is_size(entry.get(key)) for key in ("bytes", "rows", "columns")
        ):
            raise NearplaneError(f"{source}: {name!r} needs bytes, rows and columns above zero")
    return layers


def _check_version(version: Any, source: str) -> None:
    if not _is_size(version):
        raise NearplaneError(f"{source} has no format_version that is a number: {version!r}")
    if version > FORMAT_VERSION:
        raise NearplaneError(
            f"{source} was made by a newer nearplane: format version {version}, "
            f"while this one reads up to {FORMAT_VERSION}; upgrade nearplane"
        )


def _is_size(value: Any) -> bool:
    # bool is an int to isinstance
    return type(value) is int and 1 <= value < 2**63
