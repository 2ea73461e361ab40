"""KL divergence and top-1 agreement between a quantized model and the original model."""

import time
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from nearplane.evaluate.perplexity import (
    Perplexity,
    WindowOptions,
    Windows,
    batches,
    perplexity_of,
    scored_logits,
    with_progress,
)
from nearplane.model.output_head import vocabulary
from nearplane.types import NearplaneError, Progress, no_progress

MODELS = 2  # logits of so many models are in memory at once


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from a reference's, over the scored tokens of a text.

    - `kl`: mean of Σ_v p(v) log(p(v) / q(v)) in nats; p is the reference, q the model.
    - `kl_999`: its quantile of 99.9 %, which one token in a thousand exceeds.
    - `top1`: share of the tokens for which both models predict the same most likely token.
    - `tokens`: the number of scored tokens.
    - `model`, `reference`: the perplexities of both models, from the same logits.
    """

    kl: float
    kl_999: float
    top1: float
    tokens: int
    model: Perplexity
    reference: Perplexity

    def sentence(self) -> str:
        """Return the result in one line, with the conditions of the measurement."""
        return (
            f"KL divergence {decimal(self.kl, 5)} nats a token, 99.9 % of them below "
            f"{decimal(self.kl_999, 3)}, "
            f"top-1 agreement {100 * self.top1:.2f} % (against a perplexity of "
            f"{self.reference.perplexity:.4f}, {self.tokens} tokens)"
        )

    def for_json(self) -> dict[str, Any]:
        return asdict(self)


def decimal(value: float, digits: int) -> str:
    """Return a number with so many decimals, or with a power of ten where these show little."""
    plain = value == 0 or abs(value) >= 10 ** (2 - digits)
    return f"{value:.{digits}f}" if plain else f"{value:.1e}"


@dataclass
class Sums:
    """Sums over the tokens that were scored so far; the losses are negative log-likelihoods.

    - `kl`: of every token.
    """

    kl: list[Float64[Tensor, " some"]] = field(default_factory=list)
    agreed: int = 0
    model_loss: float = 0.0
    reference_loss: float = 0.0


def divergence(
    model: nn.Module,
    reference: nn.Module,
    windows: Windows,
    options: WindowOptions,
    progress: Progress = no_progress,
) -> Divergence:
    """Return how much the predictions of `model` differ from those of `reference`.

    Both models run on the same windows; their logits are computed for a few tokens at a time.

    - `windows`, `options`: what `text_windows` returned, and the options it was given.
    - `progress`: is called with the share of the windows that is done.

    Raises NearplaneError if their vocabularies differ, or if a loss is not finite.
    """
    check_vocabularies(model, reference)
    started = time.perf_counter()
    sums = Sums()
    for tokens in with_progress(batches(windows), progress):
        both = (scored_logits(m, tokens, windows.scored, MODELS) for m in (model, reference))
        for (ours, target), (theirs, _) in zip(*both, strict=True):
            add_slice(sums, ours, theirs.to(ours.device), target)
    seconds = time.perf_counter() - started
    own = perplexity_of(sums.model_loss, windows, options, seconds)
    found = torch.cat(sums.kl)
    return Divergence(
        kl=float(found.sum()) / own.tokens,
        kl_999=float(found.kthvalue(ceil(0.999 * len(found))).values),
        top1=sums.agreed / own.tokens,
        tokens=own.tokens,
        model=own,
        reference=perplexity_of(sums.reference_loss, windows, options, seconds),
    )


def check_vocabularies(model: Any, reference: Any) -> None:
    """Raise NearplaneError unless both models have vocabularies of the same size."""
    sizes = [vocabulary(m) for m in (model, reference)]
    if sizes[0] != sizes[1]:
        raise NearplaneError(
            f"the vocabularies differ: {sizes[0]} tokens against the reference's {sizes[1]}; "
            "a divergence needs the model that this one was made of"
        )


def add_slice(
    sums: Sums,
    model: Float[Tensor, "batch some vocabulary"],
    reference: Float[Tensor, "batch some vocabulary"],
    target: Int64[Tensor, "batch some"],
) -> None:
    """Add the losses and the divergence of some tokens, from both models' logits, to `sums`."""
    # argmax of bfloat16 is slow; argmax of the log-probabilities would find ties that logits lack
    model, reference = model.float(), reference.float()
    sums.agreed += int(agreements(model, reference).sum())
    log_q, log_p = model.log_softmax(-1), reference.log_softmax(-1)
    sums.model_loss += loss(log_q, target)
    sums.reference_loss += loss(log_p, target)
    sums.kl.append(kl(log_p, log_q).flatten().cpu())


def agreements(
    model: Float[Tensor, "*tokens vocabulary"], reference: Float[Tensor, "*tokens vocabulary"]
) -> Bool[Tensor, "*tokens"]:
    """Return for which tokens the argmax of both logits is the same; ties give the first."""
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
