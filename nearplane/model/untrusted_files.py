"""What is checked of somebody else's files before libraries make something of them."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nearplane.types import NearplaneError

# what a model may compute for itself: tables of positions and masks
FREE_NUMBERS = 2**28
BUILT_IN = (None, "eager", "sdpa")  # implementations that are part of transformers


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError where a library in Rust panics, which is told by no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a library failed: {error}") from error


def forget_fetched_code(config: Any) -> None:
    """Let transformers choose implementations itself: config.json may name compiled ones on a hub.

    It would fetch and run them, if the package `kernels` is installed.
    """
    for kind in ("_attn_implementation", "_experts_implementation"):
        found = getattr(config, kind, None)
        # also for the parts of a configuration, which may name others
        setattr(config, kind, found if found in BUILT_IN else None)


def check_blocks(config: Any, tensors: int) -> None:
    """Raise NearplaneError if config.json counts more blocks than files hold tensors.

    A model is built block by block, so this comes before it is.
    """
    blocks = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(blocks, int) and blocks > tensors:
        raise NearplaneError(
            f"config.json asks for {blocks} blocks, where the files hold {tensors} tensors"
        )


def check_numbers(model: Any, stored: Iterable[list[int]]) -> None:
    """Raise NearplaneError if an empty model has more numbers than the files hold.

    - `model`: on the meta device, its compressed layers already in place.
    - `stored`: the shapes of all tensors in the files, records among them.
    """
    held = sum(map(math.prod, stored))
    tied = set(model.all_tied_weights_keys)
    parameters = sum(p.numel() for name, p in model.named_parameters() if name not in tied)
    asked = max(parameters, sum(buffer.numel() for buffer in model.buffers()))
    if asked > held + FREE_NUMBERS:
        raise NearplaneError(
            f"config.json asks for a model of {asked:,} numbers, where the files hold {held:,}"
        )
