"""Large language models compressed by solving each linear layer as a closest-vector problem."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

# before anything that imports torch
from nearplane import waiting  # noqa: F401

# isort: split
from nearplane import lattice
from nearplane.export.registration import register_when_imported
from nearplane.methods import ECLQ, GPTQ, HPTQ, HRTN, RTN, SSQR, WaterSIC
from nearplane.types import NearplaneError, QuantizedWeight

if TYPE_CHECKING:
    from nearplane.export.linear import resident_bpw
    from nearplane.export.load import load, load_tokenizer
    from nearplane.quantize import quantize

__version__ = "0.1.0"

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
    "quantize": "nearplane.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'nearplane' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])


class _Package(ModuleType):
    """Keeps `nearplane.quantize` a function after nearplane/quantize.py was imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _LATER and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
register_when_imported()

# faster versions of the functions above register themselves; everything works without the folder
if importlib.util.find_spec("nearplane.kernels"):
    importlib.import_module("nearplane.kernels")
