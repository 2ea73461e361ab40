"""Register what extends transformers and peft as soon as these are imported, and not before.

Importing them takes seconds, which a program that only rounds matrices should not pay for. They
have no entry points for plugins. So a finder on `sys.meta_path` waits until one of their modules is
imported, imports what extends it behind it, and removes itself.
"""

import importlib
import importlib.util
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# module that is awaited -> ours that extends it when it is imported
PLUGINS = {
    "transformers.quantizers.auto": "nearplane.export.transformers",
    "peft.tuners.lora.model": "nearplane.export.adapters",
}


def register_when_imported() -> None:
    """Import each of `PLUGINS` as soon as the module that it extends has been imported."""
    for awaited in PLUGINS:
        if _is_loaded(sys.modules.get(awaited)):
            _register(awaited)
        elif not any(isinstance(f, AwaitingFinder) and f.awaited == awaited for f in sys.meta_path):
            sys.meta_path.insert(0, AwaitingFinder(awaited))


def _is_loaded(module: ModuleType | None) -> bool:
    # sys.modules also lists modules whose import has not finished
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _register(awaited: str) -> None:
    try:
        importlib.import_module(PLUGINS[awaited])
    except ImportError as error:
        # an error here would break every program that imports the library, so it is a warning
        library = awaited.partition(".")[0]
        warnings.warn(f"{library} will not read nearplane checkpoints: {error}", stacklevel=2)


class AwaitingFinder(MetaPathFinder):
    """Finds the module `awaited`, wraps its loader, and removes itself from `sys.meta_path`."""

    def __init__(self, awaited: str):
        self.awaited = awaited

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.awaited:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = RegisteringLoader(spec.loader, self.awaited)
        return spec


class RegisteringLoader(Loader):
    """Loads a module with its own loader, then imports what extends it."""

    def __init__(self, loader: Loader, awaited: str):
        self.loader, self.awaited = loader, awaited

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _register(self.awaited)
