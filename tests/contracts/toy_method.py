"""A method in one file, as somebody would write who adds one; run, it is the command line."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, nearest_integer
from nearplane.methods.certificate import measure
from nearplane.methods.method import Method, check_range
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class ToyGrid(Method):
    """Round to the nearest multiple of one step, which is `reach` over the largest integer.

    - `levels`: integers on each side of zero.
    - `reach`: the largest value, in standard deviations of the weight.
    """

    levels: int = 100
    reach: float = 5.0

    def __post_init__(self) -> None:
        check_range("levels", self.levels, 1, 1000)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return rows * columns * torch.tensor(self.levels * 1.0).log2().item() / 8

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        step = (self.reach * weight.std() / self.levels).float().reshape(1, 1)
        step = codes.round_step(step)
        code = nearest_integer(weight / step, -self.levels, self.levels).int()
        record, code_bytes = codes.pack(code, step, weight.shape[1], None, codes.Huffman())
        losses = measure(weight, lambda rows: code[rows] * step, basis)
        return QuantizedWeight(
            code=code,
            step=step,
            group_size=weight.shape[1],
            outliers=None,
            record=record,
            code_bytes=code_bytes,
            loss=losses.loss,
            damped_loss=losses.damped,
            bound=None,
            void="a toy has no bound",
        )


if __name__ == "__main__":
    from nearplane.cli import main

    main()
