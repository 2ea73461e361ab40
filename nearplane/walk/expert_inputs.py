"""The tokens that enter a mixture of experts, kept so that no expert needs another forward pass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearplane.model.experts import Expert, Experts, routes
from nearplane.walk.hidden_states import HiddenStates, rows_of


@dataclass
class RoutedTokens:
    """The tokens that enter the experts of a layer, and the experts that each is routed to.

    A `RepeatedRun` takes an expert's inputs from here, instead of running the block for each
    expert. Inputs of a down projection are computed from the tokens by the expert's other layers.

    - `tokens`: one tensor a batch that reaches the experts; None where only `places` matter.
    - `at`: the index of each batch in `tokens`, None for one that does not reach the experts.
    - `places`: of each batch and expert, the indices into the flattened top-k choices that name it.
    - `k`: how many experts each token is routed to.
    """

    mixture: Experts
    tokens: HiddenStates | None
    at: list[int | None] = field(default_factory=list)
    places: list[list[Tensor]] = field(default_factory=list)
    k: int = 1

    def add(self, given: tuple[Tensor, ...] | None) -> None:
        """Add the next batch: its tokens and their choices of experts, None if it has none."""
        if given is None:
            self.at.append(None)
            self.places.append([])
            return
        tokens, index = given
        self.at.append(None if self.tokens is None else len(self.tokens))
        self.places.append(routes(index, len(self.mixture)))
        self.k = index.shape[1]
        if self.tokens is not None:
            self.tokens.append(tokens)

    def reaches(self, batch: int, expert: Expert) -> bool:
        """Whether a token of a batch is routed to an expert."""
        return bool(self.places[batch]) and len(self._places(batch, expert)) > 0

    def inputs(self, batch: int, expert: Expert, down: bool) -> Tensor | None:
        """Return the inputs of an expert's first layers in a batch, or of its down projection.

        Computed with the expert's present weights; None if no token is routed to it.
        """
        at = self.at[batch]
        if self.tokens is None or at is None or not self.reaches(batch, expert):
            return None
        tokens = rows_of(self.tokens, at, self._places(batch, expert) // self.k)
        with torch.no_grad():
            return self.mixture.inner(expert, tokens) if down else tokens

    def _places(self, batch: int, expert: Expert) -> Tensor:
        return self.places[batch][self.mixture.number(expert)]
