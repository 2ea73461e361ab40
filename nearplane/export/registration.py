"""Register the quantizer with transformers as soon as transformers is imported, and not before.

Importing transformers takes seconds, which a program that only rounds matrices should not pay for.
transformers has no entry points for plugins. So a finder on `sys.meta_path` waits until one of its
modules is imported, registers the quantizer behind it, and removes itself.
"""

import importlib
import importlib.util
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AWAITED = "transformers.quantizers.auto"
PLUGIN = "nearplane.export.transformers"


def register_when_imported() -> None:
    """Register the quantizer as soon as transformers' table of quantizers has been imported."""
    if _is_loaded(sys.modules.get(AWAITED)):
        _register()
    elif not any(isinstance(finder, AwaitingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AwaitingFinder())


def _is_loaded(module: ModuleType | None) -> bool:
    # sys.modules also lists modules whose import has not finished
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _register() -> None:
    try:
        importlib.import_module(PLUGIN)
    except ImportError as error:
        # an error here would break every program that imports transformers, so it is a warning
        warnings.warn(f"transformers will not read nearplane checkpoints: {error}", stacklevel=2)


class AwaitingFinder(MetaPathFinder):
    """Finds the module `AWAITED`, wraps its loader, and removes itself from `sys.meta_path`."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = RegisteringLoader(spec.loader)
        return spec


class RegisteringLoader(Loader):
    """Loads a module with its own loader, then registers the quantizer."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _register()
