"""Perplexity of a causal language model on a text, computed in windows of tokens."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from nearplane.evaluate.intervals import Estimate, exp, interval_sentence, mean_estimate
from nearplane.model.forward_arguments import forward_arguments, logits_of
from nearplane.model.output_head import vocabulary
from nearplane.types import NearplaneError, Progress, no_progress
from nearplane.walk.calibration import opening_token
from nearplane.walk.capture import replaced_forward
from nearplane.walk.documents import read_text

BATCH_TOKENS = 4096  # tokens in one forward pass, for all of which a layer is decoded only once
LOGIT_BYTES = 2e8  # memory that logits may take
COMPARED = 16  # tokens on which the head behind the body is compared with the whole model
# model -> whether its head can be run apart from its body
HEADS_APART: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
BYTES_PER_LOGIT = 12  # one in the model's dtype, one in float32 and a temporary of the loss


@dataclass(frozen=True)
class WindowOptions:
    """How a text is split into windows of tokens; NearplaneError for values out of range.

    - `context`: tokens of a window, the BOS token included.
    - `stride`: tokens from the start of one window to the start of the next. Only the last `stride`
      tokens of a window are scored. None is `context`: disjoint windows.
    - `windows`: the largest number of windows; None for all.
    """

    context: int = 1024
    stride: int | None = None
    windows: int | None = None

    def __post_init__(self) -> None:
        if self.context < 2:
            raise NearplaneError(f"the context must be at least 2 tokens, not {self.context}")
        if self.stride is not None and not 1 <= self.stride <= self.context:
            raise NearplaneError(
                f"the stride must lie between 1 and the context of {self.context}, "
                f"not {self.stride}"
            )
        if self.windows is not None and self.windows < 1:
            raise NearplaneError(f"at least 1 window is needed, not {self.windows}")


@dataclass(frozen=True)
class Windows:
    """Windows of tokens; the last `scored` of each are scored, and `bos` is the first, if any."""

    tokens: Int64[Tensor, "windows context"]
    scored: int
    bos: int | None


@dataclass(frozen=True)
class Perplexity:
    """The perplexity, exp(nll), and how it was measured.

    - `nll`: mean negative log-likelihood of the scored tokens, in nats.
    - `fingerprint`: SHA-256 of the tokens of all windows.
    - `low`, `high`: the 95 % confidence interval of the perplexity on texts like this one; None for
      too few windows.
    """

    perplexity: float
    nll: float
    tokens: int
    context: int
    stride: int
    windows: int
    bos: int | None
    seconds: float
    fingerprint: str
    low: float | None = None
    high: float | None = None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.perplexity, self.low, self.high)

    def sentence(self) -> str:
        """Return the result in one line, with the conditions of the measurement."""
        opened = "no opening token" if self.bos is None else f"opened by token {self.bos}"
        return (
            f"perplexity {self.perplexity:.4f} (context {self.context}, stride {self.stride}, "
            f"{self.windows} windows, {opened}, {self.tokens} tokens scored, {self.seconds:.1f} s)"
        )

    def interval_sentence(self) -> str:
        """Return one line with the confidence interval."""
        return interval_sentence(self.windows, {"perplexity": (self.estimate, ".4f")})

    def for_json(self) -> dict[str, Any]:
        return asdict(self)


def text_windows(text: str | Path, tokenizer: Any, options: WindowOptions) -> Windows:
    """Return the windows of a text file.

    Raises NearplaneError if it cannot be read or is shorter than one window.
    """
    path = Path(text)
    if not path.is_file():
        raise NearplaneError(f"there is no text file {path}")
    stream = tokenizer("".join(read_text(path)), add_special_tokens=False).input_ids
    tokens = torch.tensor(stream, dtype=torch.long)
    return token_windows(tokens, opening_token(tokenizer), options, path)


def token_windows(
    stream: Int64[Tensor, " tokens"],
    bos: int | None,
    options: WindowOptions,
    name: str | Path = "the text",
) -> Windows:
    """Return windows of `context` tokens, each beginning with `bos` if it is not None.

    Windows start `stride` tokens apart, or `context` − 1 if `bos` takes one token of disjoint
    windows. Tokens at the end that do not fill a window are left out.

    - `name`: what the text is called in the NearplaneError if it is shorter than one window.
    """
    length = options.context - (bos is not None)
    stride = min(options.stride or options.context, length)
    if len(stream) < length:
        raise NearplaneError(
            f"{name} has {len(stream)} tokens, and one window of {options.context} needs {length}: "
            "give a longer text or a smaller context"
        )
    windows = stream.unfold(0, length, stride)[: options.windows]
    if bos is not None:
        windows = torch.cat([torch.full((len(windows), 1), bos), windows], dim=1)
    return Windows(windows, min(stride, options.context - 1), bos)


def perplexity(
    model: nn.Module, windows: Windows, options: WindowOptions, progress: Progress = no_progress
) -> Perplexity:
    """Return the perplexity of `model`.

    - `windows`, `options`: what `text_windows` returned, and the options it was given.
    - `progress`: is called with the share of the windows that is done.

    Raises NearplaneError if the model's loss is not finite.
    """
    started = time.perf_counter()
    found = [
        losses(model, batch, windows.scored).mean(dim=1).cpu()
        for batch in with_progress(batches(windows), progress)
    ]
    return perplexity_of(torch.cat(found), windows, options, time.perf_counter() - started)


def with_progress(parts: Sequence[Tensor], progress: Progress) -> Iterator[Tensor]:
    """Yield all parts, and call `progress` with the share of them that is done."""
    for number, part in enumerate(parts):
        progress("evaluating", number / len(parts))
        yield part
    progress("evaluating", 1.0)


def batches(windows: Windows) -> tuple[Tensor, ...]:
    """Return the tokens of `windows` in batches, one for each forward pass."""
    return windows.tokens.split(max(1, BATCH_TOKENS // windows.tokens.shape[1]))


def perplexity_of(
    window_nll: Float64[Tensor, " windows"],
    windows: Windows,
    options: WindowOptions,
    seconds: float,
) -> Perplexity:
    """Return the result for the mean negative log-likelihood of each window's scored tokens.

    NearplaneError if one is not finite.
    """
    count, context = windows.tokens.shape
    nll = mean_estimate(window_nll)
    if not math.isfinite(nll.value):
        raise NearplaneError(
            f"the model's loss on this text is {nll.value}: its weights are damaged"
        )
    estimate = nll.mapped(exp)
    return Perplexity(
        perplexity=estimate.value,
        nll=nll.value,
        tokens=count * windows.scored,
        context=context,
        stride=options.stride or context,
        windows=count,
        bos=windows.bos,
        seconds=seconds,
        fingerprint=hashlib.sha256(windows.tokens.contiguous().numpy().tobytes()).hexdigest(),
        low=estimate.low,
        high=estimate.high,
    )


def losses(
    model: nn.Module, tokens: Int64[Tensor, "batch context"], scored: int
) -> Float[Tensor, "batch scored"]:
    """Return the negative log-likelihood of the last `scored` tokens of each window, in float64."""
    slices = [
        nn.functional.cross_entropy(logits.float().mT, target, reduction="none")
        for logits, target in scored_logits(model, tokens, scored)
    ]
    return torch.cat(slices, dim=1).double()


def scored_logits(
    model: nn.Module, tokens: Int64[Tensor, "batch context"], scored: int, models: int = 1
) -> Iterator[tuple[Float[Tensor, "batch some vocabulary"], Int64[Tensor, "batch some"]]]:
    """Yield the logits that predict the last `scored` tokens of each window, and these tokens.

    The body (`base_model`) runs once; the output head runs on some tokens at a time, so that the
    logits of a large vocabulary take little memory. A model of which this would not give its own
    logits runs as a whole.

    - `models`: how many models' logits are in memory at the same time.
    """
    whole: Any = model
    # a model may have no parameter, if all of its layers are compressed
    tokens = tokens.to(next(chain(model.parameters(), model.buffers())).device)
    if not head_is_apart(whole, tokens[:1, :COMPARED]):
        with torch.no_grad():
            logits = logits_of(whole(**forward_arguments(whole, tokens)))
        yield logits[:, -scored - 1 : -1], tokens[:, -scored:]
        return
    with torch.no_grad():
        output = whole.base_model(**forward_arguments(whole.base_model, tokens))
    hidden = output[0][:, -scored - 1 : -1]
    some = tokens_per_slice(whole, len(tokens) * models)
    for first in range(0, scored, some):
        # products of bfloat16 inputs that are not contiguous take forty times as long
        part = hidden[:, first : first + some].contiguous()
        target = tokens[:, tokens.shape[1] - scored + first :][:, : part.shape[1]]
        yield head_logits(whole, output, part, target), target


def head_is_apart(model: Any, tokens: Int64[Tensor, "one some"]) -> bool:
    """Whether last hidden states, put into the model again, give its own logits; found out once."""
    if model not in HEADS_APART:
        HEADS_APART[model] = head_gives_logits(model, tokens)
    return HEADS_APART[model]


@torch.no_grad()
def head_gives_logits(model: Any, tokens: Int64[Tensor, "one some"]) -> bool:
    """Whether the model's logits are those of its body's hidden states, but for rounding."""
    expected = logits_of(model(**forward_arguments(model, tokens)))
    try:
        output = model.base_model(**forward_arguments(model.base_model, tokens))
        # other tokens: a model that does not call its body through this name would read them
        found = head_logits(model, output, output[0], tokens.roll(1, 1))
    # bodies return what they like
    except Exception:
        return False
    if found.shape != expected.shape:
        return False
    limit = 8 * torch.finfo(expected.dtype).eps * expected.float().norm()
    return bool((found.float() - expected.float()).norm() <= limit)


def tokens_per_slice(model: Any, windows: int) -> int:
    """Return how many tokens of each window the output head is computed for at once."""
    return max(1, int(LOGIT_BYTES / (vocabulary(model) * BYTES_PER_LOGIT * windows)))


def head_logits(
    model: Any,
    output: Any,
    hidden: Float[Tensor, "batch some hidden"],
    target: Int64[Tensor, "batch some"],
) -> Float[Tensor, "batch some vocabulary"]:
    """Return the logits that the model computes from last hidden states.

    - `output`: what the body returned, from which all other fields are taken.
    - `target`: passed as `input_ids`, which only the replaced body would read.
    """
    given = type(output)(**{**output, "last_hidden_state": hidden})
    # families scale or cap logits in ways of their own, which only their forward knows
    with replaced_forward(model.base_model, lambda *_, **__: given), torch.no_grad():
        return logits_of(model(**forward_arguments(model, target)))
