"""The product with several compressed matrices, as one custom operator for torch.compile."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nearplane.codes import resident

LIBRARY = torch.library.Library("nearplane", "FRAGMENT")
LIBRARY.define(
    "fused_linear(Tensor x, Tensor[] laid, str[] forms, int[] rows, Tensor? bias) -> Tensor"
)


def fused_linear(
    x: Float[Tensor, "*batch columns"],
    laid: list[UInt8[Tensor, " _"]],
    forms: list[str],
    rows: list[int],
    bias: Float[Tensor, " all_rows"] | None = None,
) -> Float[Tensor, "*batch all_rows"]:
    """Return x · valueᵀ + bias for several matrices `value`, their outputs concatenated.

    - `laid`, `forms`: the bytes and the form of each matrix, as `resident.lay_out` returned them.
    - `rows`: the number of outputs of each matrix.
    """
    if torch.compiler.is_compiling():
        return torch.ops.nearplane.fused_linear(x, laid, forms, rows, bias)
    return _fused_linear(x, laid, forms, rows, bias)


def _fused_linear(
    x: Tensor, laid: list[Tensor], forms: list[str], rows: list[int], bias: Tensor | None
) -> Tensor:
    biases = [None] * len(rows) if bias is None else bias.split(rows)
    matrices = zip(laid, forms, rows, biases, strict=True)
    parts = [resident.product(x, *matrix) for matrix in matrices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _fake(
    x: Tensor, laid: list[Tensor], forms: list[str], rows: list[int], bias: Tensor | None
) -> Tensor:
    return x.new_empty((*x.shape[:-1], sum(rows)))


LIBRARY.impl("fused_linear", _fused_linear, "CompositeExplicitAutograd")
torch.library.register_fake("nearplane::fused_linear", _fake, lib=LIBRARY)
