"""Which layers of a model are quantized, which are left out, and why: decided here alone.

The planner decides on a model without weights and hands the `Selection` on; the walk, the evaluator
and the command line ask it by the layers' names.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nearplane.model.blocks import Layer, find_blocks, is_linear
from nearplane.model.experts import Experts
from nearplane.model.output_head import (
    EMBEDDING,
    HEAD,
    OutsideLayer,
    head_of,
    layers_outside_blocks,
)
from nearplane.types import NearplaneError

ROUTER_NAMES = ("gate", "router")
FEWEST_WEIGHTS = 128  # a record takes about 150 bytes beside its codes


@dataclass(frozen=True)
class Rules:
    """The user's rules: what to quantize, and how many layers may fail.

    - `skip`: regular expressions; layers whose names match one stay as they are.
    - `strict`: refuse a model with parts that cannot be quantized, instead of naming them.
    - `keep`: which of "embedding" and "head" stay as they are; either, where they share a weight.
    - `fallback_share`: the share of layers that may fall back to round-to-nearest.
    """

    skip: tuple[str, ...] = ()
    strict: bool = False
    keep: tuple[str, ...] = ()
    fallback_share: float = 0.05

    def __post_init__(self) -> None:
        for part in self.keep:
            if part not in (EMBEDDING, HEAD):
                raise NearplaneError(f"--keep takes {EMBEDDING} or {HEAD}, not {part!r}")

    def skips(self, name: str) -> bool:
        """Whether a layer of this name stays as it is."""
        return any(re.search(pattern, name) for pattern in self.skip)


@dataclass(frozen=True)
class Selection:
    """The names of the layers that are quantized, and of those that are not, by reason.

    - `in_blocks`: layers inside the model's blocks, in the order of its modules.
    - `outside`: layers outside of the blocks that are quantized too: the embedding of tokens and
      the output head, or the embedding alone where they share a weight.
    - `kept`: sentences on those of them that stay as they are.
    - `unsupported`: modules with matrices that are no linear layers, with their classes.
    - `routers`: modules that choose or weigh experts. `skipped`: layers that `rules` leave out.
    - `small`: layers whose record would take as much as the weight.
    - `beside`: parts outside of the blocks, and how many linear layers each holds: those of images,
      for example.
    """

    rules: Rules
    in_blocks: tuple[str, ...]
    outside: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    beside: tuple[tuple[str, int], ...] = ()
    kept: tuple[str, ...] = ()
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(self.in_blocks + self.outside))

    def __contains__(self, layer: Layer) -> bool:
        return layer.name in self.names

    def among(self, layers: Iterable[Layer]) -> list[Layer]:
        """Return those of some layers that are quantized, in their order."""
        return [layer for layer in layers if layer in self]

    def of(self, model: nn.Module) -> list[Layer]:
        """Return the layers to quantize, of a model whose experts are split."""
        return [Layer(name, model.get_submodule(name)) for name in (*self.in_blocks, *self.outside)]

    def heads(self, model: nn.Module) -> list[Layer]:
        """Return the output head if it is quantized apart from an embedding, in a list."""
        return [layer for layer in self.layers_outside(model) if not is_embedding(layer)]

    def embeddings(self, model: nn.Module) -> list[Layer]:
        """Return the embedding if it is quantized, in a list."""
        return [layer for layer in self.layers_outside(model) if is_embedding(layer)]

    def layers_outside(self, model: nn.Module) -> list[Layer]:
        """Return the layers to quantize outside of the blocks."""
        return [Layer(name, model.get_submodule(name)) for name in self.outside]

    def left_out(self, unreached: Iterable[Layer] = ()) -> list[str]:
        """Return a sentence for everything that stays as it is.

        - `unreached`: layers that no token reached when the model was run.
        """
        return [
            *(f"{part} cannot be quantized" for part in self.unsupported),
            *(f"{name} stays as it is: it chooses or weighs experts" for name in self.routers),
            *(f"{layer.name} was not reached by any token" for layer in unreached),
            *(f"{name} is skipped as asked" for name in self.skipped),
            *(f"{name} stays as it is: a record would take as much" for name in self.small),
            *self.kept,
            *(
                f"{name} stays as it is: it is outside of the blocks ({count} linear layers)"
                for name, count in self.beside
            ),
        ]


def is_embedding(layer: Layer) -> bool:
    """Whether a layer is looked up in, by token."""
    return isinstance(layer.module, nn.Embedding)


def select(model: nn.Module, rules: Rules | None = None) -> Selection:
    """Return which layers are quantized, of a model with split experts, with or without weights.

    Raises NearplaneError when the model has no blocks, nothing is left to quantize, or parts cannot
    be quantized under `rules.strict`.
    """
    rules = rules or Rules()
    name, blocks = find_blocks(model)
    named = [(f"{name}.{index}", block) for index, block in enumerate(blocks)]
    unsupported = [part for prefix, block in named for part in unsupported_parts(block, prefix)]
    if unsupported and rules.strict:
        raise NearplaneError(f"these parts cannot be quantized: {', '.join(unsupported)}")
    found = [layer for prefix, block in named for layer in linear_layers(block, prefix)]
    # a weight that several layers share is quantized once, under its first name
    first = {id(layer.stored): layer.name for layer in reversed(found)}
    once = [layer for layer in found if first[id(layer.stored)] == layer.name]
    small = [layer.name for layer in once if layer.stored.numel() < FEWEST_WEIGHTS]
    layer_names = [layer.name for layer in once if layer.name not in small]
    outside = [(layer, why_kept(layer, rules)) for layer in layers_outside_blocks(model)]
    selection = Selection(
        rules=rules,
        in_blocks=tuple(name for name in layer_names if not rules.skips(name)),
        outside=tuple(layer.layer.name for layer, reason in outside if not reason),
        unsupported=tuple(unsupported),
        routers=tuple(f"{prefix}.{name}" for prefix, block in named for name in routers(block)),
        skipped=tuple(name for name in layer_names if rules.skips(name)),
        small=tuple(name for name in small if not rules.skips(name)),
        beside=tuple(parts_beside(model, name).items()),
        kept=tuple(f"{layer.names[0]} {reason}" for layer, reason in outside if reason),
    )
    if not selection.names and selection.skipped:
        raise NearplaneError("every layer is skipped: nothing to quantize")
    if not selection.names:
        raise NearplaneError(
            f"the blocks {name} of {type(model).__name__} hold no linear layer that can be "
            "quantized: nothing to quantize"
        )
    return selection


def why_kept(outside: OutsideLayer, rules: Rules) -> str:
    """Return why an embedding or output head stays as it is, behind its name; "" if it does not."""
    if any(map(rules.skips, outside.names)):
        return "is skipped as asked"
    if set(outside.parts) & set(rules.keep):
        return "stays as it is, as asked"
    if outside.problem:
        return f"stays as it is: {outside.problem}"
    small = outside.layer.stored.numel() < FEWEST_WEIGHTS
    return "stays as it is: a record would take as much" if small else ""


def parts_beside(model: Any, blocks: str) -> dict[str, int]:
    """Return the largest parts outside of the blocks with linear layers, and how many each holds.

    The output head is not among them.
    """
    head, counts = head_of(model), Counter()
    for name, module in model.named_modules():
        if is_linear(module) and module is not head and not name.startswith(f"{blocks}."):
            parts = name.split(".")
            above = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
            # the first name that the blocks are not inside
            counts[next(part for part in above if not f"{blocks}.".startswith(f"{part}."))] += 1
    return dict(counts)


def linear_layers(block: nn.Module, prefix: str) -> list[Layer]:
    """Return the linear layers of a block, routers left out; one that appears twice comes once."""
    routing = {part for router in routers(block).values() for part in router.modules()}
    return [
        Layer(f"{prefix}.{name}", module)
        for name, module in block.named_modules()
        if is_linear(module) and module not in routing
    ]


def routers(block: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that choose or weigh experts, by their names in the block.

    A router is a module beside the experts whose matrices all have one row for each expert, or one
    row; or that is called gate or router, as those of several layers are.
    """
    routers_by_name: dict[str, nn.Module] = {}
    for name, parent in block.named_modules():
        named = parent.named_children()
        counts = {count for part, child in named if (count := experts_in(child, part))}
        for part, child in parent.named_children() if counts else ():
            rows = {len(p) for p in child.parameters() if p.ndim == 2}
            called = part in ROUTER_NAMES or "router" in type(child).__name__.lower()
            if rows and (called or rows <= counts | {1}) and not experts_in(child, part):
                routers_by_name[f"{name}.{part}".lstrip(".")] = child
    return routers_by_name


def experts_in(module: nn.Module, name: str) -> int:
    """Return how many experts a module holds, one by one or as 3-D tensors; 0 if it holds none.

    Convolutions have 3-D tensors too: of modules that are not split, those count whose class is
    called after experts, and lists whose name is.
    """
    if isinstance(module, Experts):
        return len(module)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return len(module) if "expert" in name.lower() and len(module) > 1 else 0
    if "expert" not in type(module).__name__.lower():
        return 0
    stacked = {len(p) for p in module.parameters(recurse=False) if p.ndim == 3}
    return stacked.pop() if len(stacked) == 1 else 0


def unsupported_parts(block: nn.Module, prefix: str) -> Iterator[str]:
    """Yield the parts that hold matrices but are no linear layer that nearplane knows."""
    routing = set(routers(block).values())
    for name, module in block.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
        known = is_linear(module) or isinstance(module, nn.Embedding) or module in routing
        if matrices and not known:
            full = f"{prefix}.{name}" if name else prefix
            yield f"{full} ({type(module).__name__})"
