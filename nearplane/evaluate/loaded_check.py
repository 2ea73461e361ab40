"""Before a checkpoint appears: loaded again, it computes what the walk's blocks did."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearplane.codes.resident import COMPACT
from nearplane.export.load import load
from nearplane.model.forward_arguments import forward_arguments
from nearplane.types import NearplaneError, naming_errors
from nearplane.walk.capture import replaced_blocks, tensors_in
from nearplane.walk.self_check import SamplePass

# Kernels multiply by the stored values, in float32; the walk by these rounded to the model's type,
# in its arithmetic. So outputs differ by a few of the type's last digits for most tokens; for all
# numbers of a token, where it is routed to another expert.
DIGITS, LEAST = 8, 1e-3


class LoadedCheckError(NearplaneError):
    """The finished checkpoint does not run as the walk did; the same run would end so again."""


def check_loaded(
    directory: Path,
    sample: SamplePass,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    by_blocks: bool = False,
) -> None:
    """Load a finished checkpoint, and run it on the few tokens that followed the walk.

    Every block gets what the block before it gave in the walk, so that differences do not add up.
    It must give what it gave there, but for rounding, for more than half of the tokens.

    - `dtype`: the type of the walk's products.
    - `by_blocks`: whether one block is in memory at a time.

    Raises LoadedCheckError if the checkpoint cannot be loaded or run, or computes something else.
    """
    try:
        run_and_compare(directory, sample, dtype, trust_remote_code, by_blocks)
    except NearplaneError as error:
        raise LoadedCheckError(f"{error}; --skip leaves layers as they are") from error


def run_and_compare(
    directory: Path, sample: SamplePass, dtype: torch.dtype, trusted: bool, by_blocks: bool
) -> None:
    """Do what `check_loaded` says; raises NearplaneError."""
    name, seen = sample.trace.name, sample.seen.on_cpu()
    assert seen.tokens is not None
    names = [f"{name}.{index}" for index in range(len(sample.trace.blocks))]
    # the walk's own products are exact
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trusted, "resident": COMPACT}
    with naming_errors("loading the checkpoint that was made"):
        model: Any = load(directory, **options, without=names if by_blocks else ())
    blocks = model.get_submodule(name)
    forwards = [block.forward for block in blocks]
    expected = iter(zip(sample.trace.order, seen.outputs, strict=True))

    def checked(index: int, args: tuple, kwargs: dict) -> Any:
        wanted, outputs = next(expected, (None, []))
        if wanted != index:
            raise NearplaneError(f"the checkpoint that was made runs {name}.{index} out of turn")
        run = forwards[index]
        if by_blocks:
            others = [other for other in names if other != names[index]]
            run = load(directory, **options, without=others).get_submodule(names[index])
        with naming_errors(f"{name}.{index} of the checkpoint that was made"):
            output = run(*args, **kwargs)
        compare(output, outputs, f"{name}.{index}")
        for tensor, walked in zip(tensors_in(output), outputs, strict=True):
            tensor.data = walked
        return output

    with ExitStack() as stack:
        stack.enter_context(replaced_blocks(blocks, checked))
        stack.enter_context(torch.no_grad())
        stack.enter_context(naming_errors("running the checkpoint that was made"))
        result = model(**forward_arguments(model, seen.tokens))
    compare(result, seen.end, type(model).__name__)


def compare(found: Any, expected: list[Tensor], name: str) -> None:
    """Raise NearplaneError unless tensors are the expected ones, for more than half of the tokens.

    Integers, such as chosen positions, are not compared.
    """
    tensors = list(tensors_in(found))
    if [t.shape for t in tensors] != [t.shape for t in expected]:
        raise NearplaneError(
            f"{name} of the checkpoint that was made returns other tensors than it did in the walk"
        )
    for tensor, walked in zip(tensors, expected, strict=True):
        if not walked.is_floating_point():
            continue
        off = typical_difference(tensor, walked)
        if off > tolerance(walked.dtype):
            raise NearplaneError(
                f"{name} of the checkpoint that was made computes something else than in the walk: "
                f"half of the tokens are off by {off:.1e} of their norm, or more"
            )


def typical_difference(found: Tensor, expected: Tensor) -> float:
    """Return the median over tokens of ‖found − expected‖ / ‖expected‖; NaN counts as zero."""
    found, expected = (t.double().nan_to_num(0, 0, 0) for t in (found, expected))
    sizes = expected.norm(dim=-1) if expected.ndim else expected.abs()
    apart = (found - expected).norm(dim=-1) if expected.ndim else (found - expected).abs()
    return float((apart / sizes.clamp_min(1e-30)).median())


def tolerance(dtype: torch.dtype) -> float:
    """Return the largest difference that is put down to rounding."""
    return max(DIGITS * torch.finfo(dtype).eps, LEAST)
