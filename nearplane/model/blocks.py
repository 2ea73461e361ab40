"""Finding a model's blocks and their linear layers by walking it, not by a table of families."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearplane.types import NearplaneError

# what a subclass may define without being another layer
HARMLESS = {
    *("__module__", "__doc__", "__init__", "__annotations__", "__parameters__", "__orig_bases__"),
    *("extra_repr", "reset_parameters", "__firstlineno__", "__static_attributes__"),
}
TOWERS = ("vision", "visual", "image", "audio", "speech")  # in names of parts beside the language


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
        return self.stored.T if self.transposed else self.stored

    @property
    def stored(self) -> nn.Parameter:
        """The weight as the module stores it."""
        return self.module.get_parameter("weight")

    def assign(self, value: Float[Tensor, "rows columns"]) -> None:
        """Put `value` in the weight's place, in the weight's own type and in memory of its own."""
        weight, stored = self.stored, value.T if self.transposed else value
        like = {"device": weight.device, "dtype": weight.dtype}
        weight.data = stored.to(**like, memory_format=torch.contiguous_format)

    def release(self) -> None:
        """Free the weight's memory; the layer cannot run any more."""
        self.stored.data = self.stored.new_empty(0)

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
    """Whether nearplane can quantize `module`: it computes x · weightᵀ + bias and nothing else.

    A subclass of nn.Linear with a forward of its own, as some routers are, is no such layer.
    """
    if module._parameters.get("weight") is None or "forward" in vars(module):
        return False  # its weight is computed from others, or its forward replaced
    plain = isinstance(module, nn.Linear) and not changed_names(type(module))
    return plain or is_conv1d(module) or is_falcon_linear(module)


def changed_names(kind: type) -> set[str]:
    """Return what a subclass of nn.Linear defines anew, so that it is more than that."""
    own = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Linear)]:
        own |= vars(base).keys()
    return own - HARMLESS


def is_falcon_linear(module: nn.Module) -> bool:
    """Whether `module` is Falcon's linear layer, whose own forward adds the bias by itself."""
    return (
        type(module).__name__ == "FalconLinear"
        and type(module).__module__ == "transformers.models.falcon.modeling_falcon"
    )


def linear_modules(block: nn.Module) -> list[nn.Module]:
    """Return the linear layers of a block."""
    return [module for module in block.modules() if is_linear(module)]


def find_blocks(model: nn.Module) -> tuple[str, Any]:
    """Return the name and the list of the blocks that the language model runs one after the other.

    The list with most parameters whose modules have linear layers, and that is in no other such; of
    a model with towers for images or sound, one inside the part that transformers calls decoder.

    Raises NearplaneError when the model has none.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and holds_blocks(module)
    }
    outer = [n for n in lists if not any(n.startswith(o + ".") for o in lists)]
    if not outer:
        raise NearplaneError(
            f"{type(model).__name__} has no ModuleList or Sequential of blocks with linear layers "
            "in them: nothing to quantize"
        )
    inside = set(language_part(model).modules())
    outer = [name for name in outer if lists[name] in inside] or outer
    outer = [name for name in outer if not any(tower in name for tower in TOWERS)] or outer
    name = max(outer, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    return name, lists[name]


def holds_blocks(modules: nn.ModuleList | nn.Sequential) -> bool:
    """Whether a list, numbered from 0, holds modules with linear layers inside."""
    numbered = list(modules._modules) == [str(index) for index in range(len(modules))]
    inside = (m for block in modules for m in block.modules() if m is not block)
    return numbered and any(map(is_linear, inside))


def language_part(model: Any) -> nn.Module:
    """Return the part that is the language model: what transformers calls decoder, or all."""
    try:
        part = model.get_decoder()
    # classes of other packages, and some of transformers', have none
    except Exception:
        return model
    return part if isinstance(part, nn.Module) else model


def check_finite(layer: Layer) -> None:
    """Raise NearplaneError when the layer's weight holds NaN or infinity."""
    if not torch.isfinite(layer.stored).all():
        raise NearplaneError(
            f"{layer.name} holds NaN or infinite weights: repair the model before quantizing it"
        )
