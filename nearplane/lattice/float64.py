"""Where float64 work is done: many devices are slow at it, and some have no float64 at all.

Tensors in float64 lie on one device, and what takes cubic time in float64 (Cholesky factors,
products with them) is computed on one, which may be another: see `Float64Devices`. Which ones these
are is decided outside of here, by `float64_devices.within`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from nearplane.op import Op


@dataclass(frozen=True)
class Float64Devices:
    """For tensors of one device: where those in float64 lie, and where cubic work is done.

    - `kept`: of factors, and of all that takes time in proportion to the numbers it reads.
    - `cubic`: of factorizations and matrix products.
    """

    kept: torch.device
    cubic: torch.device


@Op
def float64_devices(device: torch.device) -> Float64Devices:
    """Return where float64 work on the tensors of a device is done; this reference: there."""
    return Float64Devices(device, device)


def widened(tensor: Tensor) -> Float64[Tensor, "..."]:
    """Return a tensor in float64, where these lie."""
    return tensor.to(float64_devices(tensor.device).kept).double()


def narrowed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the type and on the device of another; it is rounded where it lies."""
    return tensor.to(like.dtype).to(like.device)
