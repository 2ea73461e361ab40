"""A program: torch.compile takes the operator whole, for any batch, and checks a layout once."""

import torch
from torch import nn

from nearplane.codes import resident
from nearplane.export.vllm.product import fused_linear
from nearplane.kernels.cpu import available
from tests.vllm.parts import parts


class Layer(nn.Module):
    """A layer as vLLM's has them: layouts are buffers, all else is constant."""

    def __init__(self, recorded: bool):
        super().__init__()
        made = parts([32, 16, 16], 40)
        self.forms, self.rows = made.forms, made.rows
        for number, laid in enumerate(made.laid):
            if recorded:
                laid = resident.stored(laid, self.forms[number], self.rows[number], 40)
            self.register_buffer(f"laid_{number}", laid)
        if recorded:
            self.forms = [resident.RECORD] * 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        laid = [getattr(self, f"laid_{number}") for number in range(3)]
        return fused_linear(torch.relu(x), laid, self.forms, self.rows)


def check(recorded: bool) -> None:
    torch.compiler.reset()
    layer = Layer(recorded)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for batch in (2, 3, 5):
            x = torch.randn(batch, 40)
            assert torch.equal(compiled(x), layer(x))


def count_checks() -> list[int]:
    """Return a list to which every check of a layout adds its size."""
    from nearplane.kernels.cpu import layout

    checked: list[int] = []
    remember = layout._remember

    def counted(laid: torch.Tensor) -> tuple[int, int]:
        checked.append(len(laid))
        return remember(laid)

    layout._remember = counted
    return checked


if __name__ == "__main__":
    checked = count_checks() if available() else []
    check(recorded=False)
    # once for each part, when it was made
    assert len(checked) in (0, 3), checked
    check(recorded=True)
