"""Hessians of experts that few tokens reach: they borrow from all tokens that enter the mixture."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from nearplane.model.experts import Experts
from nearplane.walk.hidden_states import HiddenStates, each, kept, rows_of
from nearplane.walk.input_statistics import InputStatistics, sum_inputs
from nearplane.walk.placement import Placement
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.streams import StageInputs, Streams
from nearplane.walk.trace import Stage

ENOUGH = 4  # with this many tokens a column, an expert's Hessian is of its own tokens alone
LENT = 1  # with fewer, borrowed tokens are weighted like at most this many tokens a column


@dataclass(frozen=True)
class ExpertTokens:
    """The tokens that enter the experts of a layer, batch by batch.

    - `ranks`: the processes that have the other batches; all call the same functions in one order.
    """

    mixture: Experts
    batches: HiddenStates
    ranks: Ranks = ALONE

    @cached_property
    def shared(self) -> InputStatistics:
        """The Hessian of all tokens that enter the experts."""
        columns = next(iter(self.mixture)).first[0].weight.shape[1]
        return self.summed(columns, each(self.batches))

    @cached_property
    def total(self) -> int:
        """How many tokens there are in all processes."""
        return self.ranks.total(sum(map(len, self.kept_batches())))

    def summed(self, columns: int, batches: Iterable[Tensor]) -> InputStatistics:
        """Return the Hessian of inputs, summed on the experts' device."""
        device = next(iter(self.mixture)).first[0].weight.device
        return sum_inputs(columns, map(StageInputs, batches), self.ranks, device)

    def lent(self, stage: Stage) -> InputStatistics:
        """Return the Hessian that an expert's stage would have if all tokens were routed to it.

        For a down projection the tokens, ENOUGH a column, go through the expert's own gate and up
        projections, which are quantized by now; those of other experts compute other features.
        """
        if stage.expert is None or stage.layers[0].module is not stage.expert.down_proj:
            return self.shared
        columns = stage.layers[0].shape[1]
        with torch.no_grad():
            inner = (self.mixture.inner(stage.expert, x) for x in self.picked(ENOUGH * columns))
            return self.summed(columns, inner)

    def picked(self, count: int) -> Iterable[Tensor]:
        """Yield about `count` tokens, evenly spaced, or all if there are fewer."""
        every = max(1, self.total // max(count, 1))
        first = 0
        for index, batch in enumerate(self.kept_batches()):
            yield rows_of(self.batches, index, slice(first, None, every))
            first = (first - len(batch)) % every

    def kept_batches(self) -> Iterable[Tensor]:
        """Yield all batches where they are kept, without copying them to where blocks run."""
        return (kept(self.batches, index) for index in range(len(self.batches)))

    def blended(self, stage: Stage, own: InputStatistics) -> InputStatistics:
        """Return the statistics of an expert's own tokens, with borrowed ones if they are few.

        H = (n H_own + m H_lent) / (n + m)   for n tokens and m = borrowed(n, columns)
        """
        count = borrowed(own.tokens, len(own.hessian))
        lent = self.lent(stage) if count else own
        if not count or not lent.tokens:
            return own
        weight = own.tokens + count
        hessian = (own.tokens * own.hessian + count * lent.hessian) / weight
        return replace(own, hessian=hessian, borrowed=count)


@dataclass
class BlockExperts:
    """The experts of a block, and the tokens that enter each, taken from the block's runs once.

    - `placement`: where these tokens are kept; in memory if None.
    """

    streams: Streams
    ranks: Ranks = ALONE
    placement: Placement | None = None
    known: dict[Experts, ExpertTokens] = field(default_factory=dict)

    def tokens_of(self, stage: Stage) -> ExpertTokens | None:
        """Return the tokens that enter the mixture of a stage; None for a stage without experts.

        Call it before `Streams.given` for the stage.
        """
        mixture = stage.mixture
        if mixture is not None and mixture not in self.known:
            states = list if self.placement is None else self.placement.hidden_states
            entered = self.streams.entered(mixture, states)
            self.known[mixture] = ExpertTokens(mixture, entered, self.ranks)
        return None if mixture is None else self.known[mixture]


def borrowed(tokens: int, columns: int) -> int:
    """Return how many borrowed tokens are added to a Hessian of `tokens` own tokens.

    LENT a column; less where own and borrowed ones would be more than ENOUGH a column.
    """
    return max(0, min(LENT * columns, ENOUGH * columns - tokens))
