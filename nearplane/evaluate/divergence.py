"""KL divergence and top-1 agreement between a quantized model and the original model."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from nearplane.evaluate.intervals import (
    Estimate,
    exp,
    interval_sentence,
    mean_estimate,
    quantile_estimate,
    share_estimate,
)
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
    - `kl_99`, `kl_999`: its quantiles of 99 % and 99.9 %, which one token in a hundred and in a
      thousand exceeds.
    - `top1`: share of the tokens for which both models predict the same most likely token.
    - `tokens`: the number of scored tokens.
    - `model`, `reference`: the perplexities of both models, from the same logits.
    - `estimates`: "perplexity_ratio", model over reference, "kl", "kl_99", "kl_999" and "top1" with
      their 95 % confidence intervals. Both models score the same tokens, so that of the ratio is
      paired: it comes from the difference of both losses in every window.
    """

    kl: float
    kl_99: float
    kl_999: float
    top1: float
    tokens: int
    model: Perplexity
    reference: Perplexity
    estimates: dict[str, Estimate]

    def sentence(self) -> str:
        """Return the result in one line, with the conditions of the measurement."""
        return (
            f"KL divergence {decimal(self.kl, 5)} nats a token, 99 % of them below "
            f"{decimal(self.kl_99, 3)}, 99.9 % below {decimal(self.kl_999, 3)}, "
            f"top-1 agreement {100 * self.top1:.2f} % (against a perplexity of "
            f"{self.reference.perplexity:.4f}, {self.tokens} tokens)"
        )

    def interval_sentence(self) -> str:
        """Return one line with the confidence intervals of all figures."""
        found = self.estimates
        figures = {
            "perplexity": (self.model.estimate, ".4f"),
            "times the reference's": (found["perplexity_ratio"], ".4f"),
            "KL": (found["kl"], ".3g"),
            "its 99 %": (found["kl_99"], ".3g"),
            "99.9 %": (found["kl_999"], ".3g"),
            "top-1": (found["top1"], ".2%"),
        }
        return interval_sentence(self.model.windows, figures)

    def for_json(self) -> dict[str, Any]:
        return asdict(self)


def decimal(value: float, digits: int) -> str:
    """Return a number with so many decimals, or with a power of ten where these show little."""
    plain = value == 0 or abs(value) >= 10 ** (2 - digits)
    return f"{value:.{digits}f}" if plain else f"{value:.1e}"


@dataclass(frozen=True)
class TokenDifferences:
    """What was found of every scored token; losses are negative log-likelihoods in nats."""

    kl: Float64[Tensor, "windows scored"]
    agreed: Bool[Tensor, "windows scored"]
    model_loss: Float64[Tensor, "windows scored"]
    reference_loss: Float64[Tensor, "windows scored"]

    @staticmethod
    def joined(parts: Sequence["TokenDifferences"], dim: int) -> "TokenDifferences":
        """Return parts as one, that are of other tokens (1) or of other windows (0)."""
        names = [each.name for each in fields(TokenDifferences)]
        found = {name: torch.cat([getattr(p, name) for p in parts], dim) for name in names}
        return TokenDifferences(**found)


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
    found: list[TokenDifferences] = []
    for tokens in with_progress(batches(windows), progress):
        both = (scored_logits(m, tokens, windows.scored, MODELS) for m in (model, reference))
        slices = [
            token_differences(ours, theirs.to(ours.device), target)
            for (ours, target), (theirs, _) in zip(*both, strict=True)
        ]
        found.append(TokenDifferences.joined(slices, 1))
    seconds = time.perf_counter() - started
    return summed_up(TokenDifferences.joined(found, 0), windows, options, seconds)


def summed_up(
    found: TokenDifferences, windows: Windows, options: WindowOptions, seconds: float
) -> Divergence:
    """Return the figures of a text from what was found of its tokens."""
    ours, theirs = found.model_loss.mean(dim=1), found.reference_loss.mean(dim=1)
    model, reference = (perplexity_of(nll, windows, options, seconds) for nll in (ours, theirs))
    agreed = found.agreed.double().mean(dim=1)
    estimates = {
        "perplexity_ratio": mean_estimate(ours - theirs).mapped(exp),
        "kl": mean_estimate(found.kl.mean(dim=1)),
        "kl_99": quantile_estimate(found.kl, 0.99),
        "kl_999": quantile_estimate(found.kl, 0.999),
        "top1": share_estimate(agreed, model.tokens),
    }
    values = {name: estimates[name].value for name in ("kl", "kl_99", "kl_999", "top1")}
    return Divergence(
        **values, tokens=model.tokens, model=model, reference=reference, estimates=estimates
    )


def check_vocabularies(model: Any, reference: Any) -> None:
    """Raise NearplaneError unless both models have vocabularies of the same size."""
    sizes = [vocabulary(m) for m in (model, reference)]
    if sizes[0] != sizes[1]:
        raise NearplaneError(
            f"the vocabularies differ: {sizes[0]} tokens against the reference's {sizes[1]}; "
            "a divergence needs the model that this one was made of"
        )


def token_differences(
    model: Float[Tensor, "batch some vocabulary"],
    reference: Float[Tensor, "batch some vocabulary"],
    target: Int64[Tensor, "batch some"],
) -> TokenDifferences:
    """Return the losses and the divergence of some tokens, from both models' logits."""
    # argmax of bfloat16 is slow; argmax of the log-probabilities would find ties that logits lack
    model, reference = model.float(), reference.float()
    agreed = agreements(model, reference)
    log_q, log_p = model.log_softmax(-1), reference.log_softmax(-1)
    found = agreed, loss(log_q, target), loss(log_p, target)
    return TokenDifferences(kl(log_p, log_q).cpu(), *(each.cpu() for each in found))


def agreements(
    model: Float[Tensor, "*tokens vocabulary"], reference: Float[Tensor, "*tokens vocabulary"]
) -> Bool[Tensor, "*tokens"]:
    """Return for which tokens the argmax of both logits is the same; ties give the first."""
    return model.argmax(-1) == reference.argmax(-1)


def loss(
    log_probability: Float[Tensor, "*tokens vocabulary"], target: Int64[Tensor, "*tokens"]
) -> Float64[Tensor, "*tokens"]:
    """Return the negative log-likelihood of `target`."""
    return -log_probability.gather(-1, target.unsqueeze(-1)).squeeze(-1).double()


def kl(
    log_p: Float[Tensor, "*tokens vocabulary"], log_q: Float[Tensor, "*tokens vocabulary"]
) -> Float64[Tensor, "*tokens"]:
    """Return Σ_v p log(p / q) of every token; tokens of probability zero under p add nothing."""
    p = log_p.exp()
    return torch.linalg.vecdot(p, (log_p - log_q).masked_fill_(p == 0, 0)).double()
