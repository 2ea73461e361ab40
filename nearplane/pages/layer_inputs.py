"""What a section of a real layer needs: its Hessian on a text, and its original weights."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from nearplane.evaluate.perplexity import WindowOptions, batches, text_windows
from nearplane.evaluate.verify import weight_in
from nearplane.export.load import load, load_tokenizer
from nearplane.model.blocks import find_blocks
from nearplane.model.experts import split_experts_
from nearplane.model.forward_arguments import forward_arguments
from nearplane.model.open_model import open_model, open_without_weights
from nearplane.model.positions import position_limit
from nearplane.types import NearplaneError, Progress, naming_errors, no_progress

CONTEXT, WINDOWS = 512, 16  # at most so many tokens of a window, and so many windows


class ReachedError(Exception):
    """The layer has its input: the rest of the forward pass is not needed."""


def input_hessian(
    directory: str, name: str, text: str, trusted: bool, progress: Progress = no_progress
) -> tuple[Float64[Tensor, "columns columns"], int]:
    """Return the mean of x xᵀ over the inputs of a layer, and of how many tokens.

    They are those that the checkpoint itself gives the layer, on the beginning of a text: the
    layers before it are the quantized ones, as they were when it was rounded.

    Raises NearplaneError if the layer is no module of its own that takes vectors.
    """
    tokenizer = load_tokenizer(directory, trusted)
    model = load(directory, dequantize=True, trust_remote_code=trusted)
    layer = dict(model.named_modules()).get(name)
    if layer is None or isinstance(layer, nn.Embedding):
        raise NearplaneError(
            f"{name} takes no vectors of its own as it is loaded (an embedding, or one of the "
            "experts that run together): choose another layer"
        )
    context = min(CONTEXT, position_limit(model) or CONTEXT)
    windows = text_windows(text, tokenizer, WindowOptions(context, windows=WINDOWS))
    total = InputSum()
    parts = batches(windows)
    for number, tokens in enumerate(parts):
        progress("running the checkpoint", number / len(parts))
        run_until(model, layer, tokens, total)
    progress("running the checkpoint", 1.0)
    if not total.tokens:
        raise NearplaneError(f"{name} was not run on this text")
    return total.products / total.tokens, total.tokens


class InputSum:
    """The sum of x xᵀ over the tokens that a layer was given, and their number."""

    def __init__(self) -> None:
        self.products, self.tokens = torch.zeros((), dtype=torch.float64), 0

    def add(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Add the inputs of one call, as a hook in front of the layer's forward pass."""
        inputs = args[0].detach().flatten(0, -2).double()
        self.products = self.products + inputs.T @ inputs
        self.tokens += len(inputs)
        raise ReachedError


@torch.no_grad()
def run_until(model: Any, layer: nn.Module, tokens: Tensor, total: InputSum) -> None:
    """Run the model on some tokens until `layer` has its input."""
    hook = layer.register_forward_pre_hook(total.add)
    try:
        with naming_errors("running the checkpoint"):
            try:
                model(**forward_arguments(model, tokens))
            except ReachedError:
                pass
    finally:
        hook.remove()


def original_row(
    model: str, name: str, row: int, shape: tuple[int, int], trusted: bool
) -> Float[Tensor, " columns"]:
    """Return one row of a layer's weight in the original model, a directory, hub name or GGUF file.

    Raises NearplaneError if the model has no such layer of that shape.
    """
    empty = open_without_weights(model, trusted)
    source = open_model(empty, by_blocks=empty.readable_by_blocks)
    split_experts_(source.model)
    prefix, blocks = find_blocks(source.model)
    inside = [k for k in range(len(blocks)) if name.startswith(f"{prefix}.{k}.")]
    if inside:
        with source.loader.loaded(inside[0]):
            weight = weight_in(source.model, name)
            found = None if weight is None else weight.clone()
    else:
        found = weight_in(source.model, name)
    if found is None or tuple(found.shape) != shape:
        raise NearplaneError(f"{Path(model).name} has no layer {name} of {shape[0]} x {shape[1]}")
    return found[row].double()
