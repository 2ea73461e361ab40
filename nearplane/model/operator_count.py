"""Count the operators that torch runs: on a GPU each is at least one kernel launch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operators that give memory a shape or a name, and launch nothing
WITHOUT_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "resize_"}


class OperatorCount(TorchDispatchMode):
    """Inside a `with` block: how many operators ran, and what they moved.

    - `launches`: operators that start a kernel on a GPU: all but views and allocations.
    - `bytes`: of the tensors that these read and wrote, each counted once an operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes, self.paused = 0, 0, 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count nothing inside a `with` block."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.paused:
            return func(*args, **kwargs or {})
        result = func(*args, **kwargs or {})
        if not func.is_view and func.overloadpacket.__name__ not in WITHOUT_KERNEL:
            self.launches += 1
            self.bytes += sum(map(bytes_of, tree_leaves((args, kwargs, result))))
        return result


def bytes_of(value: Any) -> int:
    """Return the bytes of a tensor's numbers, and 0 for anything else."""
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
