"""A norm between a layer and the hidden states: what a change behind it asks of the layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

LIKE = 0.02  # of the largest output: norms compute in the model's own type
FLOOR = 0.1  # of the root mean square gain: channels that are nearly shut are not opened


def gain_of(norm: Any, width: int, like: Tensor) -> Float[Tensor, " width"]:
    """Return the gain of an RMS norm: what it makes of ones, which have a mean square of one."""
    with torch.no_grad():
        return norm(torch.ones(1, width, dtype=like.dtype, device=like.device))[0].float()


def is_rms_norm(module: nn.Module, given: Tensor, made: Tensor) -> bool:
    """Whether `made` is given / rms(given) · gain, for a gain that depends on nothing else."""
    if given.shape != made.shape:
        return False
    x = given.float()
    expected = x / rms_of(x) * gain_of(module, x.shape[-1], given)
    apart = (expected - made.float()).abs().max()
    return bool(apart <= LIKE * made.float().abs().max())


def rms_of(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
    return x.square().mean(-1, keepdim=True).sqrt()


def before_norm(
    change: Float[Tensor, "*batch width"],
    output: Float[Tensor, "*batch width"],
    norm: nn.Module,
) -> Float[Tensor, "*batch width"]:
    """Return what to add to a layer's `output` so that the norm behind it gives `change` more.

        norm(y) = y / rms(y) · g,   so   y + rms(y) · change / g  gives it in the first order,

    the size of y being free: a norm does not see it. 1 / g is held back where g is small.
    """
    x = output.float()
    gain = gain_of(norm, x.shape[-1], output)
    inverse = gain / (gain.square() + FLOOR**2 * gain.square().mean())
    return rms_of(x) * change * inverse
