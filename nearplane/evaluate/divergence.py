"""How far a model's predictions are from those of the model it was made of."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from nearplane.evaluate.perplexity import (
    Cut,
    Perplexity,
    Windows,
    batches,
    perplexity_of,
    scored_logits,
    with_progress,
)
from nearplane.types import NearplaneError, Progress, no_progress

MODELS = 2  # whose logits are in memory at once


@dataclass(frozen=True)
class Divergence:
    """What a model's predictions lost against a reference's, over the scored tokens of a text.

    - `kl`: mean of Σ_v p(v) log(p(v) / q(v)) in nats; p is the reference, q the model.
    - `top1`: share of the tokens at which both hold the same token to be the likeliest.
    - `model`, `reference`: the perplexities of both, of the same logits.
    """

    kl: float
    top1: float
    tokens: int
    model: Perplexity
    reference: Perplexity

    def sentence(self) -> str:
        """Return the result with what it must not be quoted without."""
        return (
            f"KL divergence {self.kl:.5f} nats a token, top-1 agreement {100 * self.top1:.2f} % "
            f"(against a perplexity of {self.reference.perplexity:.4f}, {self.tokens} tokens)"
        )

    def for_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Sums:
    """What is added up of every slice of tokens."""

    kl: float = 0.0
    agreed: int = 0
    model_loss: float = 0.0
    reference_loss: float = 0.0


def divergence(
    model: nn.Module,
    reference: nn.Module,
    windows: Windows,
    cut: Cut,
    progress: Progress = no_progress,
) -> Divergence:
    """Return how far `model` is from `reference` on windows that `cut` made.

    Both run over the same windows, and only slices of their logits are ever in memory.

    - `progress`: is called with the share of the windows that has been done.

    Raises NearplaneError when their vocabularies differ, or a loss is not a finite number.
    """
    check_vocabularies(model, reference)
    started = time.perf_counter()
    sums = Sums()
    for tokens in with_progress(batches(windows), progress):
        both = (scored_logits(m, tokens, windows.scored, MODELS) for m in (model, reference))
        for (ours, target), (theirs, _) in zip(*both, strict=True):
            add_slice(sums, ours, theirs.to(ours.device), target)
    seconds = time.perf_counter() - started
    own = perplexity_of(sums.model_loss, windows, cut, seconds)
    return Divergence(
        kl=sums.kl / own.tokens,
        top1=sums.agreed / own.tokens,
        tokens=own.tokens,
        model=own,
        reference=perplexity_of(sums.reference_loss, windows, cut, seconds),
    )


def check_vocabularies(model: Any, reference: Any) -> None:
    """Raise NearplaneError unless both models predict equally many tokens."""
    known = [m.get_output_embeddings().weight.shape[0] for m in (model, reference)]
    if known[0] != known[1]:
        raise NearplaneError(
            f"the vocabularies differ: {known[0]} tokens against the reference's {known[1]}; "
            "a divergence needs the model that this one was made of"
        )


def add_slice(
    sums: Sums,
    model: Float[Tensor, "batch some vocabulary"],
    reference: Float[Tensor, "batch some vocabulary"],
    target: Int64[Tensor, "batch some"],
) -> None:
    """Add the logits of both models for the same tokens to the sums."""
    # bfloat16 has no fast search for the largest; log-softmax would make equals of near ones
    model, reference = model.float(), reference.float()
    sums.agreed += int(agreements(model, reference).sum())
    log_q, log_p = model.log_softmax(-1), reference.log_softmax(-1)
    sums.model_loss += loss(log_q, target)
    sums.reference_loss += loss(log_p, target)
    sums.kl += float(kl(log_p, log_q).sum())


def agreements(
    model: Float[Tensor, "*tokens vocabulary"], reference: Float[Tensor, "*tokens vocabulary"]
) -> Bool[Tensor, "*tokens"]:
    """Return where both models hold the same token to be the likeliest; of equals, the first."""
    return model.argmax(-1) == reference.argmax(-1)


def loss(
    log_probability: Float[Tensor, "*tokens vocabulary"], target: Int64[Tensor, "*tokens"]
) -> float:
    """Return the summed negative log-likelihood of `target`."""
    return -float(log_probability.gather(-1, target.unsqueeze(-1)).double().sum())


def kl(
    log_p: Float[Tensor, "*tokens vocabulary"], log_q: Float[Tensor, "*tokens vocabulary"]
) -> Float64[Tensor, "*tokens"]:
    """Return Σ_v p log(p / q) of every token; tokens of probability zero under p add nothing."""
    p = log_p.exp()
    return torch.linalg.vecdot(p, (log_p - log_q).masked_fill_(p == 0, 0)).double()
