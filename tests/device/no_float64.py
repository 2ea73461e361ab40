"""A device that has no float64, as Apple's have none: any tensor of that type on it is an error."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUBIC = ("linalg_cholesky_ex", "mm", "addmm")  # operators that take n³ operations


class NoFloat64(TorchDispatchMode):
    """Inside a `with` block, refuse float64 in operators with tensors of another device.

    Refused are such tensors of the device, given or made, and those of the CPU that would become
    the device's on their way: they are to be rounded first. Numbers of Python's code may be there.

    - `names`: of the operators that refuse it; empty for all.
    """

    def __init__(self, names: tuple[str, ...] = ()):
        super().__init__()
        self.names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        wide = [t for t in tensors if t.dtype == torch.float64]
        refuses = not self.names or func.overloadpacket.__name__ in self.names
        if refuses and wide and any(t.device.type != "cpu" for t in tensors):
            raise TypeError(f"float64 on a device that has none: {func} of {wide[0].shape}")
        return result
