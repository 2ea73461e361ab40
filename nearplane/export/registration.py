"""transformers learns of nearplane when somebody imports it, and no sooner.

Importing transformers takes seconds, which a program that only rounds matrices need not wait for.
transformers has no entry points, so a finder waits for one of its modules and then steps aside.
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
    """Register the quantizer: now if transformers' table of them is loaded, else once it is."""
    if _is_loaded(sys.modules.get(AWAITED)):
        _register()
    elif not any(isinstance(finder, AwaitingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AwaitingFinder())


def _is_loaded(module: ModuleType | None) -> bool:
    # a module that is still running its body is in sys.modules, too
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _register() -> None:
    try:
        importlib.import_module(PLUGIN)
    except ImportError as error:
        # whoever imports transformers may not care about nearplane at all
        warnings.warn(f"transformers will not read nearplane checkpoints: {error}", stacklevel=2)


class AwaitingFinder(MetaPathFinder):
    """Finds one module, wraps its loader, and leaves `sys.meta_path`."""

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
    """Loads as the module's own loader does, then registers the quantizer."""

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
