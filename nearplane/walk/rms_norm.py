"""RMS norms between a layer and the residual stream, as Gemma has them.

Targets that correct drifted hidden states ask for a change of what is added to these: the norm's
output. This file computes the change of the layer's output, in front of the norm, that causes it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

LIKE = 0.02  # error of a norm in bfloat16 that is tolerated, over its largest output
FLOOR = 0.1  # of the root mean square gain, below which a channel's gain is not inverted


def gain_of(norm: Any, width: int, like: Tensor) -> Float[Tensor, " width"]:
    """Return the gain of an RMS norm: its output for ones, whose mean square is one."""
    with torch.no_grad():
        return norm(torch.ones(1, width, dtype=like.dtype, device=like.device))[0].float()


def is_rms_norm(module: nn.Module, given: Tensor, output: Tensor) -> bool:
    """Whether `output` is given / rms(given) · gain, for a constant gain."""
    if given.shape != output.shape:
        return False
    x = given.float()
    try:
        gain = gain_of(module, x.shape[-1], given)
    # other modules may not take what a norm takes
    except Exception:
        return False
    if gain.shape != x.shape[-1:]:
        return False
    expected = x / rms_of(x) * gain
    difference = (expected - output.float()).abs().max()
    return bool(difference <= LIKE * output.float().abs().max())


def rms_of(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
    """Return the root mean square of every token."""
    return x.square().mean(-1, keepdim=True).sqrt()


def before_norm(
    change: Float[Tensor, "*batch width"],
    output: Float[Tensor, "*batch width"],
    norm: nn.Module,
) -> Float[Tensor, "*batch width"]:
    """Return what to add to a layer's `output` so that the norm after it puts out `change` more.

        norm(y) = y / rms(y) · g,   so   y + rms(y) · change / g  brings it about,

    to the first order, as the norm does not depend on the size of y. 1 / g is damped where g is
    small.
    """
    x = output.float()
    gain = gain_of(norm, x.shape[-1], output)
    inverse = gain / (gain.square() + FLOOR**2 * gain.square().mean())
    return rms_of(x) * change * inverse
