"""How many tokens a model takes where its positions are rows of a table, as in GPT-2 and OPT."""

from typing import Any

from torch import nn

from nearplane.model.output_head import embedding_of
from nearplane.types import NearplaneError

OFFSETS = range(4)  # rows that some tables have before the first position


def position_limit(model: Any) -> int | None:
    """Return the most tokens of a sequence; None where positions are computed, not looked up.

    A table of positions is an embedding, not that of the words, with as many rows as the
    configuration has positions, or a few more.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = embedding_of(model)
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words)
    if isinstance(limit, int) and any(t.num_embeddings - limit in OFFSETS for t in tables):
        return limit
    return None


def check_positions(model: Any, tokens: int, option: str) -> None:
    """Raise NearplaneError, naming the option that helps, for more tokens than the model takes."""
    limit = position_limit(model)
    if limit is not None and tokens > limit:
        raise NearplaneError(
            f"{tokens} tokens are more than the {limit} positions of this model: give a smaller "
            f"{option}"
        )
