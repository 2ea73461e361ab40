"""Large language models compressed by solving each linear layer as a closest-vector problem."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

# before anything that imports torch
from nearplane import openmp  # noqa: F401

# isort: split
from nearplane import lattice
from nearplane.export.registration import register_when_imported
from nearplane.methods import ECLQ, GPTQ, HPTQ, HRTN, RTN, SSQR, WaterSIC
from nearplane.types import NearplaneError, QuantizedWeight
from nearplane.version import __version__

if TYPE_CHECKING:
    from nearplane.export.linear import resident_bpw
    from nearplane.export.load import load, load_tokenizer
    from nearplane.pipeline import quantize

__all__ = [
    "ECLQ",
    "GPTQ",
    "HPTQ",
    "HRTN",
    "RTN",
    "SSQR",
    "NearplaneError",
    "QuantizedWeight",
    "WaterSIC",
    "__version__",
    "lattice",
    "load",
    "load_tokenizer",
    "quantize",
    "resident_bpw",
]

# What rests on transformers, which takes seconds to import: found when it is asked for.
_LATER = {
    "load": "nearplane.export.load",
    "load_tokenizer": "nearplane.export.load",
    "resident_bpw": "nearplane.export.linear",
    "quantize": "nearplane.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'nearplane' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])


register_when_imported()

# faster versions of the functions above register themselves; everything works without the folder
if importlib.util.find_spec("nearplane.kernels"):
    importlib.import_module("nearplane.kernels")
