"""A decoder block's products for one token, and what stands between them.

A block of the Llama kind: norm, queries, keys and values, rotation; attention, which is the
caller's; output, residual sum, norm, gated feed-forward, residual sum.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from nearplane.codes import resident
from nearplane.op import Op

SILU, GELU_TANH = "silu", "gelu_tanh"


@dataclass(frozen=True, eq=False)
class Norm:
    """y = x / √(mean x² + eps) · (offset + weight); y = x where `weight` is None."""

    weight: Float[Tensor, " features"] | None = None
    eps: float = 0.0
    offset: float = 0.0

    def __call__(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        if self.weight is None:
            return x
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * (self.offset + self.weight.float())).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Linear:
    """A compressed weight as it lies in memory (`codes.resident`), and its bias."""

    laid: UInt8[Tensor, " resident"]
    form: str
    rows: int
    columns: int
    bias: Float[Tensor, " rows"] | None = None

    def __call__(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        return resident.product(x, self.laid, self.form, self.rows, self.bias)


@dataclass(frozen=True, eq=False)
class Block:
    """The parts of a decoder block.

    - `head_size`: columns of one head; keys and values may have fewer heads than queries.
    - `gate_kind`: "silu" or "gelu_tanh".
    - `after_attention`, `after_mlp`: of what is added to the residual.
    """

    head_size: int
    gate_kind: str
    queries: Linear
    keys: Linear
    values: Linear
    output: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Norm
    of_queries: Norm
    of_keys: Norm
    after_attention: Norm
    before_mlp: Norm
    after_mlp: Norm

    @property
    def linears(self) -> tuple[Linear, ...]:
        attention = (self.queries, self.keys, self.values, self.output)
        return (*attention, self.gate, self.up, self.down)

    @cached_property
    def forms(self) -> frozenset[str]:
        """The forms in which the weights lie."""
        return frozenset(linear.form for linear in self.linears)


@Op
def attention_inputs(
    block: Block,
    x: Float[Tensor, "1 1 hidden"],
    cosine: Float[Tensor, "1 1 rotated"],
    sine: Float[Tensor, "1 1 rotated"],
) -> tuple[
    Float[Tensor, "1 heads 1 head_size"],
    Float[Tensor, "1 kv_heads 1 head_size"],
    Float[Tensor, "1 kv_heads 1 head_size"],
]:
    """Return a token's queries, keys and values; the first two are rotated.

    - `cosine`, `sine`: of the token's position; the angles of one half, twice.
    """
    normed = block.before_attention(x)

    def heads(linear: Linear) -> Tensor:
        return linear(normed).view(1, 1, -1, block.head_size).transpose(1, 2)

    def turned(given: Tensor) -> Tensor:
        low, high = given[..., : cosine.shape[-1]].chunk(2, -1)
        rest = given[..., cosine.shape[-1] :]
        rotated = torch.cat([low, high], -1) * cosine + torch.cat([-high, low], -1) * sine
        return torch.cat([rotated, rest], -1)

    queries, keys = block.of_queries(heads(block.queries)), block.of_keys(heads(block.keys))
    return turned(queries), turned(keys), heads(block.values)


@Op
def after_attention(
    block: Block, x: Float[Tensor, "1 1 hidden"], attended: Float[Tensor, "1 heads 1 head_size"]
) -> Float[Tensor, "1 1 hidden"]:
    """Return the block's output, from its input and what attention gave for this token."""
    given = block.output(attended.transpose(1, 2).reshape(1, 1, -1))
    middle = x + block.after_attention(given)
    normed = block.before_mlp(middle)
    gate = block.gate(normed)
    gate = F.silu(gate) if block.gate_kind == SILU else F.gelu(gate, approximate="tanh")
    return middle + block.after_mlp(block.down(gate * block.up(normed)))
