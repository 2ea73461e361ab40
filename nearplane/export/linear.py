"""A linear layer whose weight is compressed, in memory as in the checkpoint."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nearplane.codes import resident


class CompressedLinear(nn.Module):
    """A linear layer whose weight is a record; it stands in for nn.Linear and GPT-2's Conv1D.

    - `record`: (bytes,), always of an (out, in) matrix. `lay_out` replaces it by bytes that a
      kernel multiplies by; it is then made again at every access, and in `state_dict`.
    - `dtype`: of the weight that the record replaces; `to` and `half` change it.
    - `transposed`: whether the layer it replaces stores (in, out), as Conv1D does.
    """

    record: UInt8[Tensor, " bytes"]
    laid: UInt8[Tensor, " resident"] | None
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
        self.form = resident.RECORD
        self.stored_bytes = len(record)
        self.register_buffer("record", record)
        self.register_buffer("laid", None, persistent=False)
        # empty: it only remembers a type, through every cast that nn.Module knows
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @property
    def weight(self) -> Tensor:
        """The weight as the replaced layer had it, decoded at every access; a copy to read only."""
        value = self.value().to(self.like.dtype)
        return value.T if self.transposed else value

    @property
    def resident_bpw(self) -> float:
        """Bits per weight of what the layer keeps in memory to multiply by."""
        return 8 * len(self._bytes) / (self.in_features * self.out_features)

    def value(self) -> Float[Tensor, "out_features in_features"]:
        """Return the weight, decoded, in float32."""
        return resident.value(self._bytes, self.form, self.out_features, self.in_features)

    def lay_out(self) -> None:
        """Put the record into the form that the kernels of this machine multiply by, if any.

        The record is dropped. CorruptError if it is not as its format says.
        """
        if self.form != resident.RECORD or self.record.is_meta:
            return
        form, laid = resident.lay_out(self.record, self.out_features, self.in_features)
        if form != resident.RECORD:
            self.form, self.laid = form, laid
            del self.record

    def restore(self) -> None:
        """Put the record back in place of what `lay_out` made of it."""
        if self.form != resident.RECORD:
            record = self.record
            self.form, self.laid = resident.RECORD, None
            self.register_buffer("record", record)

    # the argument has the name that nn.Linear's has
    def forward(
        self, input: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        return resident.product(input, self._bytes, self.form, self.out_features, self.bias)

    def extra_repr(self) -> str:
        bpw = 8 * self.stored_bytes / (self.in_features * self.out_features)
        laid = "" if self.laid is None else f", resident_bpw={self.resident_bpw:.3f}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bpw={bpw:.3f}{laid}"
        )

    @property
    def _bytes(self) -> Tensor:
        return self.record if self.laid is None else self.laid

    def __getattr__(self, name: str) -> Any:
        # the buffer is gone once it was laid out
        if name == "record" and self.laid is not None:
            return resident.stored(self.laid, self.form, self.out_features, self.in_features)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CompressedLinear":
        # what is laid out for one device is of no use on another
        laid = self.laid
        moves = laid is not None and fn(laid[:0]).device.type != laid.device.type
        if moves:
            self.restore()
        super()._apply(fn, recurse)
        if moves:
            self.lay_out()
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.laid is not None:
            destination[prefix + "record"] = self.record

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride] - rest is passed on
        self, state_dict: dict, prefix: str, *rest: Any
    ) -> None:
        laid = self.laid is not None and prefix + "record" in state_dict
        if laid:
            self.restore()
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if laid:
            self.lay_out()


def is_compressed(model: nn.Module) -> bool:
    """Whether a layer of `model` is compressed."""
    return any(isinstance(module, CompressedLinear) for module in model.modules())


def resident_bpw(model: nn.Module) -> float:
    """Return 8 · bytes / weights over all compressed layers of `model`, as they lie in memory.

    ValueError if it has none.
    """
    layers = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    if not weights:
        raise ValueError(f"no layer of this {type(model).__name__} is compressed")
    return 8 * sum(len(layer._bytes) for layer in layers) / weights


def empty_like(linear: nn.Module, rows: int, columns: int, record_bytes: int) -> CompressedLinear:
    """Return a layer to replace `linear`, on its device, with room for a record still to load."""
    weight = linear.get_parameter("weight")
    bias = None if linear.bias is None else torch.empty_like(linear.get_parameter("bias"))
    record = torch.empty(record_bytes, dtype=torch.uint8, device=weight.device)
    transposed = not isinstance(linear, nn.Linear)
    return CompressedLinear(columns, rows, record, bias, weight.dtype, transposed)
