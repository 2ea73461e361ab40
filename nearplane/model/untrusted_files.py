"""Checks of a config.json, which may come from a stranger, before libraries act on it."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nearplane.types import NearplaneError, first_line

# numbers that a model may have beside those of its files, such as tables of positions and masks
FREE_NUMBERS = 2**28
BUILT_IN = (None, "eager", "sdpa")  # implementations that are part of transformers


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError where a library in Rust panics: PanicException is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a library failed: {error}") from error


def told_to_trust(error: Exception) -> str:
    """Return the first line of an error, or which option runs the code that it asks for."""
    if "trust_remote_code" not in str(error):
        return first_line(error)
    return "it brings Python files of its own: look at them, then give --trust-remote-code"


def forget_fetched_code(config: Any) -> None:
    """Remove from `config` the implementations of modules that are not part of transformers.

    If the package `kernels` is installed, transformers would download and run those that
    config.json names on a hub.
    """
    for kind in ("_attn_implementation", "_experts_implementation"):
        found = getattr(config, kind, None)
        # transformers sets it in nested configurations, too, which may name others
        setattr(config, kind, found if found in BUILT_IN else None)


def check_blocks(config: Any, tensors: int) -> None:
    """Raise NearplaneError if config.json counts more blocks than files hold tensors.

    To be called before the model is built, since each block takes time and memory.
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
    in_files = sum(map(math.prod, stored))
    tied = set(model.all_tied_weights_keys)
    parameters = sum(p.numel() for name, p in model.named_parameters() if name not in tied)
    in_model = max(parameters, sum(buffer.numel() for buffer in model.buffers()))
    if in_model > in_files + FREE_NUMBERS:
        raise NearplaneError(
            f"config.json asks for a model of {in_model:,} numbers, where the files hold "
            f"{in_files:,}"
        )
