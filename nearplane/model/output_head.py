"""The output head, and the embedding that it may share its weight with: outside of the blocks."""

from typing import Any

from torch import nn

from nearplane.model.blocks import Layer, is_linear
from nearplane.types import NearplaneError


def output_head(model: Any) -> Layer:
    """Return the layer that makes logits; raises NearplaneError when the model has none."""
    head = head_of(model)
    if head is None or not is_linear(head):
        raise NearplaneError(f"{type(model).__name__} has no linear output head to quantize")
    name = next(name for name, module in model.named_modules() if module is head)
    return Layer(name, head)


def tied_embedding(model: Any) -> Layer:
    """Return the embedding whose weight is the output head's, too, as a layer (rows = tokens).

    Raises NearplaneError when the model has none.
    """
    head, embedding = head_of(model), model.get_input_embeddings()
    name = type(model).__name__
    if head is None or not is_linear(head) or not isinstance(embedding, nn.Embedding):
        raise NearplaneError(f"{name} has no embedding that is its output head, too, to quantize")
    if head.weight is not embedding.weight:
        raise NearplaneError(
            f"{name} has an output head of its own beside its embedding: quantize it with --lm-head"
        )
    return Layer(next(n for n, module in model.named_modules() if module is embedding), embedding)


def untie(model: Any, head: Layer) -> None:
    """Give the head a weight of its own where it shares the embedding's, and update the config."""
    shared: Any = embedding_of(model)
    if shared is not None and head.module.weight is shared.weight:
        head.module.weight = nn.Parameter(shared.weight.detach(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def vocabulary(model: Any) -> int:
    """Return the size of a model's vocabulary: the rows of its output head, or what it says."""
    head = head_of(model)
    if head is None:
        return int(model.config.get_text_config().vocab_size)
    return head.get_parameter("weight").shape[0]


def embedding_of(model: Any) -> nn.Module | None:
    """Return the embedding of tokens of a model, or None if it does not name one."""
    try:
        return model.get_input_embeddings()
    # classes of other packages may have none
    except (AttributeError, NotImplementedError):
        return None


def head_of(model: Any) -> nn.Module | None:
    """Return the output head of a model, or None if it has none."""
    try:
        return model.get_output_embeddings()
    # classes of other packages may have none
    except (AttributeError, NotImplementedError):
        return None
