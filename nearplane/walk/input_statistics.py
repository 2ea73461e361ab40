"""Sums over a stage's inputs: a Hessian, or the moments of the quantized and original streams."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from nearplane.lattice.cross_target import Moments
from nearplane.walk.hessian import (
    HessianSum,
    add_product_,
    as_multiplied,
    mirror_,
    products_as_exact_as,
)
from nearplane.walk.hidden_states import CPU
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.streams import StageInputs

HELD_OUT = 4  # one batch in four is held out to judge targets that the others are fitted to


class DriftSum:
    """Σ x̂ x̂ᵀ, Σ x̂ xᵀ and Σ (h − ĥ) x̂ᵀ over tokens, in float32.

    x̂ and ĥ are inputs and hidden states of the quantized stream, x and h of the original one.

    - `rows`: of the layer's output, where that is added to hidden states; None elsewhere.
    """

    def __init__(self, columns: int, rows: int | None, device: torch.device = CPU):
        self.moment = HessianSum(columns, device)
        self.cross = torch.zeros(columns, columns, device=device)
        self.lag = None if rows is None else torch.zeros(rows, columns, device=device)

    def add(self, tokens: "StreamTokens") -> None:
        """Add every token that is finite in both streams."""
        tokens = tokens.finite()
        self.moment.add(tokens.drifted)
        drifted, original = as_multiplied(tokens.drifted, tokens.original)
        with products_as_exact_as(tokens.drifted.dtype):
            add_product_(self.cross, drifted, original)
            if self.lag is not None and tokens.lag is not None:
                # the difference may lose its last bits here; it is an estimate
                self.lag.addmm_(tokens.lag.T, drifted.float())

    def add_up(self, ranks: Ranks) -> None:
        """Add the sums of the other processes."""
        self.moment.add_up(ranks)
        ranks.sum_(self.cross, *([] if self.lag is None else [self.lag]))

    def moments(self) -> Moments:
        """Return the sums as moments, without a copy."""
        mirror_(self.moment.sum)
        return Moments(self.moment.sum, self.cross, self.lag)


@dataclass
class HeldOutMoments:
    """The moments of two streams, summed over three quarters of the tokens and over the others.

    They are large, so that `joined` overwrites them.
    """

    fitted: Moments | None
    held: Moments | None

    def joined(self, seen: "InputStatistics") -> Moments:
        """Return the mean moments of all tokens; overwrites the fitted ones."""
        fitted, held = self.fitted, self.held
        if fitted is None or held is None:
            raise ValueError("the parts were joined before")
        self.fitted = self.held = None
        lag = None if fitted.lag is None or held.lag is None else fitted.lag.add_(held.lag)
        tokens = max(seen.tokens, 1)
        cross = fitted.cross.add_(held.cross).div_(tokens)
        return Moments(seen.hessian, cross, lag if lag is None else lag.div_(tokens))


@dataclass(frozen=True)
class StreamTokens:
    """One batch as a row a token, of both streams; `lag` is h − ĥ, see `StageInputs`."""

    drifted: Float[Tensor, "tokens columns"]
    original: Float[Tensor, "tokens columns"]
    lag: Float32[Tensor, "tokens rows"] | None

    @classmethod
    def of(cls, given: StageInputs) -> "StreamTokens":
        lag = None if given.lag is None else flat(given.lag)
        return cls(
            flat(given.inputs),
            flat(given.inputs if given.original is None else given.original),
            lag,
        )

    def finite(self) -> "StreamTokens":
        """Return the tokens that hold neither NaN nor infinity."""
        parts = [part for part in (self.drifted, self.original, self.lag) if part is not None]
        if all(torch.isfinite(part.sum(dtype=torch.float32)) for part in parts):
            return self
        keep = torch.stack([torch.isfinite(part).all(1) for part in parts]).all(0)
        return self.where(keep)

    def where(self, keep: Tensor | slice) -> "StreamTokens":
        """Return some of the tokens."""
        lag = None if self.lag is None else self.lag[keep]
        return StreamTokens(self.drifted[keep], self.original[keep], lag)


@dataclass(frozen=True)
class InputStatistics:
    """The Hessian of a stage's inputs, and what else rounding needs to know of them.

    - `tokens`: how many were summed; `dropped`: how many held NaN or infinity.
    - `parts`: the moments of two streams; None where only one was run.
    - `borrowed`: tokens of the whole mixture that the Hessian of an expert with few tokens counts
      beside its own (walk/expert_hessians.py).
    """

    hessian: Float32[Tensor, "n n"]
    tokens: int
    dropped: int
    parts: HeldOutMoments | None = None
    borrowed: int = 0


def sum_inputs(
    columns: int,
    batches: Iterable[StageInputs],
    ranks: Ranks = ALONE,
    device: torch.device = CPU,
) -> InputStatistics:
    """Return the Hessian of the inputs of one stream, summed over all processes."""
    moment = HessianSum(columns, device)
    for given in batches:
        moment.add(given.inputs)
    moment.add_up(ranks)
    return InputStatistics(moment.mean(), moment.tokens, moment.dropped)


def sum_both_streams(
    columns: int,
    rows: int,
    batches: Iterable[StageInputs],
    count: int,
    ranks: Ranks = ALONE,
    device: torch.device = CPU,
) -> InputStatistics:
    """Return the moments of two streams over all processes, with a quarter of the tokens held out.

    - `rows`: of the outputs, all layers of the stage together.
    - `count`: of the batches. Whole batches are held out where there are enough, else the last
      quarter of each batch's tokens.
    """
    fitted = held = None
    seen = 0
    for index, given in enumerate(batches):
        if fitted is None or held is None:
            adds = rows if given.lag is not None else None
            fitted, held = DriftSum(columns, adds, device), DriftSum(columns, adds, device)
        tokens = StreamTokens.of(given)
        seen += len(tokens.drifted)
        if count >= HELD_OUT:
            (held if index % HELD_OUT == HELD_OUT - 1 else fitted).add(tokens)
        else:
            cut = len(tokens.drifted) - len(tokens.drifted) // HELD_OUT
            fitted.add(tokens.where(slice(cut)))
            held.add(tokens.where(slice(cut, None)))
    lag = fitted is not None and fitted.lag is not None
    some, lagging = ranks.total(int(fitted is not None)), ranks.total(int(lag))
    if not some:
        return InputStatistics(torch.zeros(columns, columns, device=device), 0, 0)
    if fitted is None or held is None:
        # only other processes had tokens
        fitted, held = (DriftSum(columns, rows if lagging else None, device) for _ in range(2))
    for part in (fitted, held):
        part.add_up(ranks)
    seen = ranks.total(seen)
    whole = HessianSum(0, device)
    whole.sum = fitted.moment.sum + held.moment.sum
    whole.tokens = fitted.moment.tokens + held.moment.tokens
    parts = HeldOutMoments(fitted.moments(), held.moments())
    return InputStatistics(whole.mean(), whole.tokens, seen - whole.tokens, parts)


def flat(states: Float[Tensor, "*batch columns"]) -> Float[Tensor, "tokens columns"]:
    """Return states with one row a token."""
    return states.reshape(-1, states.shape[-1])
