"""`Op`: a function that may have faster versions; a call goes to the first that accepts it."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Version = tuple[Callable[..., bool], Callable[..., Any]]


class Op:
    """A function whose body is the reference; a call goes to the first version that accepts it.

    Removing every version changes the speed of a call and never its meaning.
    """

    def __init__(self, reference: Callable[..., Any]):
        self.reference = reference
        self.versions: dict[str, Version] = {}
        self.scoped: ContextVar[tuple[Version, ...]] = ContextVar("scoped", default=())
        functools.update_wrapper(self, reference)

    def version(self, name: str, accepts: Callable[..., bool]) -> Callable[[Callable], Callable]:
        """Register a faster version; `accepts(*args)` says which calls it can serve."""

        def register(fast: Callable) -> Callable:
            if name in self.versions:
                raise ValueError(f"{self.reference.__name__} already has a version named {name!r}")
            self.versions[name] = (accepts, fast)
            return fast

        return register

    @contextmanager
    def within(
        self, version: Callable[..., Any], accepts: Callable[..., bool] = lambda *_, **__: True
    ) -> Iterator[None]:
        """Let a version serve the calls that are made inside a `with` block, before all others.

        Other threads and tasks do not see it. When the version itself calls this function, the call
        goes to the version that would have served it without this block.
        """
        token = self.scoped.set(((accepts, version), *self.scoped.get()))
        try:
            yield
        finally:
            self.scoped.reset(token)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # torch.compile cannot trace context variables, and nothing is compiled inside such a block
        scoped = () if torch.compiler.is_compiling() else self.scoped.get()
        for depth, (accepts, version) in enumerate(scoped):
            if accepts(*args, **kwargs):
                token = self.scoped.set(scoped[depth + 1 :])
                try:
                    return version(*args, **kwargs)
                finally:
                    self.scoped.reset(token)
        for accepts, fast in self.versions.values():
            if accepts(*args, **kwargs):
                return fast(*args, **kwargs)
        return self.reference(*args, **kwargs)
