"""What enters the experts of a layer, kept by batch: an expert's inputs without another run."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearplane.model.experts import Expert, Experts, routes
from nearplane.walk.hidden_states import HiddenStates


@dataclass
class RoutedTokens:
    """The tokens that enter the experts of a layer, and the experts that each is sent to.

    Runs that start anew need not do so for every expert: an expert's inputs are these tokens, and
    what its own layers make of them.

    - `tokens`: of the batches that reach the experts; None where only `places` matter.
    - `at`: where each batch is among them, None for one that does not reach the experts.
    - `places`: expert by expert, the places of a batch's flattened choices that name it.
    """

    among: Experts
    tokens: HiddenStates | None
    at: list[int | None] = field(default_factory=list)
    places: list[list[Tensor]] = field(default_factory=list)
    k: int = 1

    def add(self, given: tuple[Tensor, ...] | None) -> None:
        """Take what the next batch gives the experts' entry, or None."""
        if given is None:
            self.at.append(None)
            self.places.append([])
            return
        tokens, index = given
        self.at.append(None if self.tokens is None else len(self.tokens))
        self.places.append(routes(index, len(self.among)))
        self.k = index.shape[1]
        if self.tokens is not None:
            self.tokens.append(tokens)

    def reaches(self, batch: int, expert: Expert) -> bool:
        """Whether a token of a batch is sent to an expert."""
        return bool(self.places[batch]) and len(self._places(batch, expert)) > 0

    def inputs(self, batch: int, expert: Expert, down: bool) -> Tensor | None:
        """Return what a batch gives an expert's first layers, or its down projection.

        As the layers are now; None if no token is sent to it.
        """
        at = self.at[batch]
        if self.tokens is None or at is None or not self.reaches(batch, expert):
            return None
        tokens = self.tokens[at][self._places(batch, expert) // self.k]
        with torch.no_grad():
            return self.among.inner(expert, tokens) if down else tokens

    def _places(self, batch: int, expert: Expert) -> Tensor:
        return self.places[batch][self.among.number(expert)]
