"""A reference function that may have faster versions, registered by `kernels/`."""

import functools
from collections.abc import Callable
from typing import Any


class Op:
    """A function whose body is the reference; a call goes to the first version that accepts it.

    Removing every version changes the speed of a call and never its meaning.
    """

    def __init__(self, reference: Callable[..., Any]):
        self.reference = reference
        self.versions: dict[str, tuple[Callable[..., bool], Callable[..., Any]]] = {}
        functools.update_wrapper(self, reference)

    def version(self, name: str, accepts: Callable[..., bool]) -> Callable[[Callable], Callable]:
        """Register a faster version; `accepts(*args)` says which calls it can serve."""

        def register(fast: Callable) -> Callable:
            if name in self.versions:
                raise ValueError(f"{self.__name__} already has a version named {name!r}")
            self.versions[name] = (accepts, fast)
            return fast

        return register

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for accepts, fast in self.versions.values():
            if accepts(*args, **kwargs):
                return fast(*args, **kwargs)
        return self.reference(*args, **kwargs)
