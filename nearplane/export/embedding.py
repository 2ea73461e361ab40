"""An embedding whose weight is compressed, and the output head that shares its record."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from nearplane.codes import resident
from nearplane.export.linear import CompressedLinear


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

    # what replaces a weight for one call is nothing that torch.compile could follow
    @torch.compiler.disable
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - that is the decorator's type
        self, input: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch columns"]:
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
