"""An embedding whose weight is compressed, and the output head that shares its record."""

from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from nearplane.codes import resident
from nearplane.export.linear import CompressedLinear

LIBRARY = torch.library.Library("nearplane", "FRAGMENT")
LIBRARY.define(
    "look_up(Tensor index, Tensor laid, str form, int[] shape, ScalarType dtype) -> Tensor"
)


def look_up(
    index: Int[Tensor, "*batch"],
    laid: UInt8[Tensor, " _"],
    form: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Float[Tensor, "*batch columns"]:
    """Return the rows of a matrix of `shape` that `index` names, in the type `dtype`.

    One operator for torch.compile.
    """
    if torch.compiler.is_compiling():
        return torch.ops.nearplane.look_up(index, laid, form, shape, dtype)
    return _look_up(index, laid, form, shape, dtype)


def _look_up(
    index: Tensor, laid: Tensor, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return resident.value_rows(index, laid, form, (shape[0], shape[1]), dtype)


def _fake_rows(
    index: Tensor, laid: Tensor, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return laid.new_empty((*index.shape, shape[1]), dtype=dtype)


LIBRARY.impl("look_up", _look_up, "CompositeExplicitAutograd")
torch.library.register_fake("nearplane::look_up", _fake_rows, lib=LIBRARY)


class CompressedEmbedding(CompressedLinear):
    """An embedding whose weight is a record; rows are decoded when they are looked up.

    - `embedding`: the one that it stands in for, without its weight: its own forward is called, so
      that what a family does beside the look-up, such as a scale, stays.
    """

    def __init__(self, embedding: nn.Embedding, record: UInt8[Tensor, " bytes"]):
        embedding_weight, (rows, columns) = embedding.weight, embedding.weight.shape
        super().__init__(columns, rows, record, None, embedding_weight.dtype)
        del embedding.weight
        embedding.register_buffer("weight", embedding_weight.new_empty(0, columns), False)
        # it only matters to gradients, and its row is not there
        self.padding_idx, embedding.padding_idx = embedding.padding_idx, None
        self.embedding = embedding
        self.num_embeddings, self.embedding_dim = rows, columns

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch columns"]:
        if type(self.embedding) is nn.Embedding:
            shape = self.out_features, self.in_features
            return look_up(input, self._bytes, self.form, shape, self.like.dtype)
        by_class: Any = self.looked_up_by_class  # the decorator's type says nothing of arguments
        return by_class(input)

    # what replaces a weight for one call is nothing that torch.compile could follow
    @torch.compiler.disable
    def looked_up_by_class(self, input: Tensor) -> Tensor:
        """Return what the embedding's own class makes of the rows."""
        shape = self.out_features, self.in_features
        rows = resident.value_rows(input.flatten(), self._bytes, self.form, shape, self.like.dtype)
        empty, self.embedding._buffers["weight"] = self.embedding._buffers["weight"], rows
        try:
            return self.embedding(torch.arange(len(rows), device=rows.device).view(input.shape))
        finally:
            self.embedding._buffers["weight"] = empty

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Tensor | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Return x · weightᵀ + bias, for the output head that shares the weight."""
        return resident.product(x, self._bytes, self.form, self.out_features, bias)


class TiedLinear(nn.Module):
    """An output head that multiplies by the record of the embedding."""

    bias: nn.Parameter | None

    def __init__(self, head: nn.Linear, embedding: CompressedEmbedding):
        super().__init__()
        self.in_features, self.out_features = head.in_features, head.out_features
        # in a tuple, so that it is no child: the record is stored under the embedding's name
        self.shared = (embedding,)
        self.register_parameter("bias", head.bias)

    @property
    def weight(self) -> Tensor:
        """The embedding's weight, decoded at every access; a copy to read only."""
        return self.shared[0].weight

    def forward(self, input: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        return self.shared[0].product(input, self.bias)
