"""A linear layer that multiplies by its record, as it is stored."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nearplane import codes, types
from nearplane.op import Op


def decode(
    record: UInt8[Tensor, " bytes"], rows: int, columns: int
) -> Float[Tensor, "rows columns"]:
    """Return the weight that a record holds, float32, on the record's device."""
    if record.is_meta:
        return torch.empty(rows, columns, device="meta")
    stored = codes.unpack(record, rows, columns)
    dense = types.value(stored.code, stored.step, stored.group_size, stored.outliers)
    return dense.to(record.device)


@Op
def product(
    x: Float[Tensor, "*batch columns"],
    record: UInt8[Tensor, " bytes"],
    rows: int,
    bias: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Return x · valueᵀ + bias, where value is what `record` holds, rounded to the type of x."""
    value = decode(record, rows, x.shape[-1])
    return F.linear(x, value.to(x.dtype), bias)


class CompressedLinear(nn.Module):
    """A linear layer whose weight is a record; it stands in for nn.Linear and GPT-2's Conv1D.

    - `record`: (bytes,), always of an (out, in) matrix.
    - `dtype`: of the weight that the record replaces; `to` and `half` change it.
    - `transposed`: whether the layer it replaces stores (in, out), as Conv1D does.
    """

    record: UInt8[Tensor, " bytes"]
    like: Float[Tensor, " zero"]
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        record: UInt8[Tensor, " bytes"],
        bias: Float[Tensor, " out_features"] | None = None,
        dtype: torch.dtype | None = None,
        transposed: bool = False,
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.transposed = transposed
        self.register_buffer("record", record)
        # empty: it only remembers a type, through every cast that nn.Module knows
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @property
    def weight(self) -> Tensor:
        """The weight as the replaced layer had it, decoded at every access; a copy to read only."""
        value = self.value().to(self.like.dtype)
        return value.T if self.transposed else value

    def value(self) -> Float[Tensor, "out_features in_features"]:
        """Return the weight, decoded, in float32."""
        return decode(self.record, self.out_features, self.in_features)

    def forward(
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        return product(x, self.record, self.out_features, self.bias)

    def extra_repr(self) -> str:
        bpw = 8 * len(self.record) / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bpw={bpw:.3f}"
        )


def empty_like(linear: nn.Module, rows: int, columns: int, record_bytes: int) -> CompressedLinear:
    """Return a layer to replace `linear`, on its device, with room for a record still to load."""
    weight = linear.get_parameter("weight")
    bias = None if linear.bias is None else torch.empty_like(linear.get_parameter("bias"))
    record = torch.empty(record_bytes, dtype=torch.uint8, device=weight.device)
    transposed = not isinstance(linear, nn.Linear)
    return CompressedLinear(columns, rows, record, bias, weight.dtype, transposed)
