"""Finding a model's blocks and their linear layers by walking it, not by a table of families."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearplane.model.experts import Experts
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class Layer:
    """A linear layer and its full name; its weight is seen as (rows, columns) = (out, in)."""

    name: str
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """Whether the module stores (in, out), as GPT-2's Conv1D does."""
        return is_conv1d(self.module)

    def weight(self) -> Float[Tensor, "rows columns"]:
        """Return the weight as (out, in)."""
        return self.module.weight.T if self.transposed else self.module.weight

    def assign(self, value: Float[Tensor, "rows columns"]) -> None:
        """Put `value` in the weight's place, in the weight's own type and in memory of its own."""
        weight = self.module.weight
        stored = value.T if self.transposed else value
        weight.data = stored.to(weight.dtype, memory_format=torch.contiguous_format)

    def release(self) -> None:
        """Let go of the weight; the layer cannot run any more."""
        self.module.weight.data = torch.empty(0, dtype=self.module.weight.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weight().shape
        return rows, columns


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' Conv1D: a linear layer with its weight transposed."""
    return (
        type(module).__name__ == "Conv1D"
        and type(module).__module__ == "transformers.pytorch_utils"
    )


def is_linear(module: nn.Module) -> bool:
    """Whether nearplane can quantize `module`."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the blocks that the model runs one after the other.

    The ModuleList with most parameters that holds linear layers and lies in no other such list.

    Raises NearplaneError when the model has none.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(is_linear(m) for m in module.modules())
    }
    outer = [n for n in lists if not any(n.startswith(o + ".") for o in lists)]
    if not outer:
        raise NearplaneError(
            f"{type(model).__name__} has no list of blocks with linear layers: nothing to quantize"
        )
    name = max(outer, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    return name, lists[name]


def layers_of(block: nn.Module, prefix: str) -> list[Layer]:
    """Return the linear layers of a block, routers left out; one that appears twice comes once."""
    routing = {part for router in routers(block).values() for part in router.modules()}
    return [
        Layer(f"{prefix}.{name}", module)
        for name, module in block.named_modules()
        if is_linear(module) and module not in routing
    ]


def routers(block: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that choose or weigh experts, by their names in the block.

    They stand beside the experts, and all their matrices have a row an expert, or one row.
    """
    found: dict[str, nn.Module] = {}
    for name, parent in block.named_modules():
        counts = {len(child) for child in parent.children() if isinstance(child, Experts)}
        for part, child in parent.named_children() if counts else ():
            rows = {len(p) for p in child.parameters() if p.ndim == 2}
            if rows and rows <= counts | {1} and not isinstance(child, Experts):
                found[f"{name}.{part}".lstrip(".")] = child
    return found


def kept_router(name: str) -> str:
    """Return the sentence on a router."""
    return f"{name} stays as it is: it chooses or weighs experts"


def unquantizable(block: nn.Module, prefix: str) -> list[str]:
    """Return the names of the parts that hold matrices but are no linear layer that we know."""
    strange = []
    routing = set(routers(block).values())
    for name, module in block.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
        known = is_linear(module) or isinstance(module, nn.Embedding) or module in routing
        if matrices and not known:
            full = f"{prefix}.{name}" if name else prefix
            strange.append(f"{full} ({type(module).__name__})")
    return strange


def check_finite(layer: Layer) -> None:
    """Raise NearplaneError when the layer's weight holds NaN or infinity."""
    if not torch.isfinite(layer.module.weight).all():
        raise NearplaneError(
            f"{layer.name} holds NaN or infinite weights: repair the model before quantizing it"
        )
