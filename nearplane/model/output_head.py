"""The embedding of tokens and the output head, which may share a weight: outside of the blocks."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from nearplane.model.blocks import Layer, find_blocks, is_linear

EMBEDDING, HEAD = "embedding", "head"  # what the user calls them
MORE_TABLES = re.compile(r"per_layer|n_?gram")  # in names of further embeddings of tokens


@dataclass(frozen=True)
class OutsideLayer:
    """The embedding of tokens, or the output head, and whether it can be quantized.

    - `parts`: what it is: the embedding, the head, or both where they share a weight.
    - `names`: of all modules that have this weight, its own first.
    - `problem`: why it cannot be quantized; empty if it can.
    """

    layer: Layer
    parts: tuple[str, ...]
    names: tuple[str, ...]
    problem: str = ""


def layers_outside_blocks(model: Any) -> list[OutsideLayer]:
    """Return the embeddings and the output head of a model, as one where they share a weight."""
    embedding, head = embedding_of(model), head_of(model)
    more = more_embeddings(model, embedding)
    found = [outside_layer(model, table, (EMBEDDING,), embedding_problem(table)) for table in more]
    if embedding is not None:
        tied = shares_weight(embedding, head)
        parts = (EMBEDDING, HEAD) if tied else (EMBEDDING,)
        problem = embedding_problem(embedding)
        if tied and not problem:
            problem = head_problem(head)
        found.append(outside_layer(model, embedding, parts, problem))
        head = None if tied else head
    if head is not None:
        found.append(outside_layer(model, head, (HEAD,), head_problem(head)))
    return [layer for layer in found if layer is not None]


def more_embeddings(model: nn.Module, embedding: nn.Module | None) -> list[nn.Module]:
    """Return embeddings for each block, as Gemma 3n has, and of several tokens at a time.

    Tables of positions, or of kinds of tokens, are none.
    """
    if embedding is None or not holds_table(embedding):
        return []
    blocks, words = f"{find_blocks(model)[0]}.", embedding.get_parameter("weight").shape[0]
    return [
        module
        for name, module in model.named_modules()
        if module is not embedding
        and holds_table(module)
        and MORE_TABLES.search(name.rsplit(".", 1)[-1])
        and module.get_parameter("weight").shape[0] >= words
        and not name.startswith(blocks)
    ]


def holds_table(module: nn.Module) -> bool:
    """Whether a module is an embedding with a weight of its own."""
    return isinstance(module, nn.Embedding) and module._parameters.get("weight") is not None


def outside_layer(
    model: nn.Module, module: nn.Module, parts: tuple[str, ...], problem: str
) -> OutsideLayer | None:
    """Return a layer outside of the blocks; None for a module that the model does not name.

    - `parts`: see `OutsideLayer`; as many modules may have its weight.
    """
    weight = module._parameters.get("weight")
    named = list(model.named_modules())
    own = [name for name, other in named if other is module]
    if not own:
        return None
    if weight is None:
        return OutsideLayer(Layer(own[0], module), parts, (own[0],), problem)
    sharing = [name for name, other in named if other._parameters.get("weight") is weight]
    names = (own[0], *(name for name in sharing if name != own[0]))
    if len(names) > len(parts) and not problem:
        problem = f"it shares its weight with {names[-1]}"
    return OutsideLayer(Layer(own[0], module), parts, names, problem)


def embedding_problem(embedding: nn.Module) -> str:
    """Return why nearplane cannot quantize an embedding; "" if it can."""
    if not holds_table(embedding):
        return f"{type(embedding).__name__} is no table that is looked up in by token"
    if getattr(embedding, "max_norm", None) is not None:
        return "it changes its rows when they are looked up (max_norm)"
    more = [name for name, _ in embedding.named_parameters() if name != "weight"]
    return f"it has {more[0]} beside its rows" if more else ""


def head_problem(head: nn.Module | None) -> str:
    """Return why nearplane cannot quantize an output head; "" if it can."""
    return "" if head is not None and is_linear(head) else f"{type(head).__name__} is no nn.Linear"


def shares_weight(embedding: nn.Module | None, head: nn.Module | None) -> bool:
    """Whether an embedding and an output head have one weight."""
    if embedding is None or head is None:
        return False
    weight = embedding._parameters.get("weight")
    return weight is not None and head._parameters.get("weight") is weight


def configuration(model: Any) -> dict[str, Any]:
    """Return a model's configuration as a dictionary that does not tie what has two weights.

    transformers ties nothing where the files hold another weight for the head, whatever it says.
    """
    config = model.config.to_dict()
    embedding, head = embedding_of(model), head_of(model)
    if embedding is not None and head is not None and not shares_weight(embedding, head):
        for part in (config, *(p for p in config.values() if isinstance(p, dict))):
            if part.get("tie_word_embeddings"):
                part["tie_word_embeddings"] = False
    return config


def vocabulary(model: Any) -> int:
    """Return the size of a model's vocabulary: the rows of its output head, or what it says."""
    head = head_of(model)
    if head is None:
        return int(model.config.get_text_config().vocab_size)
    return rows_of(head)


def rows_of(module: Any) -> int:
    """Return how many tokens an embedding or output head knows, compressed ones too."""
    weight = module._parameters.get("weight")
    if weight is not None:
        return len(weight)
    return module.num_embeddings if hasattr(module, "num_embeddings") else module.out_features


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
