"""How well a causal language model predicts a text."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane.types import NearplaneError, Progress, no_progress
from nearplane.walk.calibration import opening_token
from nearplane.walk.documents import read_text

BATCH_TOKENS = 4096  # of one forward pass; compressed layers are decoded once for all of them
LOGIT_BYTES = 2e8
BYTES_PER_LOGIT = 12  # the model's own, float32, and what the loss makes of it


@dataclass(frozen=True)
class Cut:
    """How a text is cut into windows.

    - `context`: tokens of a window, the opening one included.
    - `stride`: tokens from one window's start to the next one's, of which the last so many are
      scored; None is the context, so that windows are disjoint.
    - `windows`: at most so many; None for all.
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
    """A text as token windows of one length; the last `scored` tokens of each are predicted."""

    tokens: Int64[Tensor, "windows context"]
    scored: int
    bos: int | None


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of the scored tokens, and how it was measured."""

    perplexity: float
    nll: float
    tokens: int
    context: int
    stride: int
    windows: int
    bos: int | None
    seconds: float
    fingerprint: str

    def sentence(self) -> str:
        """Return the result with what it must not be quoted without."""
        opened = "no opening token" if self.bos is None else f"opened by token {self.bos}"
        return (
            f"perplexity {self.perplexity:.4f} (context {self.context}, stride {self.stride}, "
            f"{self.windows} windows, {opened}, {self.tokens} tokens scored, {self.seconds:.1f} s)"
        )

    def for_json(self) -> dict[str, Any]:
        return asdict(self)


def cut_text(text: str | Path, tokenizer: Any, cut: Cut) -> Windows:
    """Return the windows of a text file.

    Raises NearplaneError when it cannot be read or does not fill one window.
    """
    path = Path(text)
    if not path.is_file():
        raise NearplaneError(f"there is no text file {path}")
    stream = tokenizer("".join(read_text(path)), add_special_tokens=False).input_ids
    return cut_tokens(torch.tensor(stream, dtype=torch.long), opening_token(tokenizer), cut, path)


def cut_tokens(
    stream: Int64[Tensor, " tokens"], bos: int | None, cut: Cut, name: str | Path = "the text"
) -> Windows:
    """Return windows of `context` tokens, each opened by `bos` if there is one.

    Windows start `stride` tokens apart, or as far as keeps every token of disjoint ones; tokens
    that fill no last window are left out.
    """
    body = cut.context - (bos is not None)
    stride = min(cut.stride or cut.context, body)
    if len(stream) < body:
        raise NearplaneError(
            f"{name} has {len(stream)} tokens, and one window of {cut.context} needs {body}: "
            "give a longer text or a smaller context"
        )
    windows = stream.unfold(0, body, stride)[: cut.windows]
    if bos is not None:
        windows = torch.cat([torch.full((len(windows), 1), bos), windows], dim=1)
    return Windows(windows, min(stride, cut.context - 1), bos)


def perplexity(
    model: nn.Module, windows: Windows, cut: Cut, progress: Progress = no_progress
) -> Perplexity:
    """Return the perplexity of `model` on windows that `cut` made.

    - `progress`: is called with the share of the windows that has been done.

    Raises NearplaneError when the model's loss is not a finite number.
    """
    started = time.perf_counter()
    total = 0.0
    for batch in with_progress(batches(windows), progress):
        total += float(losses(model, batch, windows.scored).sum())
    return perplexity_of(total, windows, cut, time.perf_counter() - started)


def with_progress(parts: Sequence[Tensor], progress: Progress) -> Iterator[Tensor]:
    """Yield all parts, and report what share of them has been done."""
    for number, part in enumerate(parts):
        progress("evaluating", number / len(parts))
        yield part
    progress("evaluating", 1.0)


def batches(windows: Windows) -> tuple[Tensor, ...]:
    """Return the tokens of `windows` in parts that go through the body at once."""
    return windows.tokens.split(max(1, BATCH_TOKENS // windows.tokens.shape[1]))


def perplexity_of(total: float, windows: Windows, cut: Cut, seconds: float) -> Perplexity:
    """Return the result for losses that sum to `total`; NearplaneError if that is not finite."""
    count, context = windows.tokens.shape
    tokens = count * windows.scored
    nll = total / tokens
    if not math.isfinite(nll):
        raise NearplaneError(f"the model's loss on this text is {nll}: its weights are damaged")
    return Perplexity(
        perplexity=math.exp(nll) if nll < 700 else math.inf,
        nll=nll,
        tokens=tokens,
        context=context,
        stride=cut.stride or context,
        windows=count,
        bos=windows.bos,
        seconds=seconds,
        fingerprint=hashlib.sha256(windows.tokens.contiguous().numpy().tobytes()).hexdigest(),
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

    The body runs once; the head runs on slices, so that logits of a large vocabulary stay small.

    - `models`: how many models' logits are in memory at the same time.
    """
    whole: Any = model
    tokens = tokens.to(next(model.parameters()).device)
    with torch.no_grad():
        output = whole.base_model(input_ids=tokens, use_cache=False)
    hidden = output[0][:, -scored - 1 : -1]
    some = slice_of(whole, len(tokens) * models)
    for first in range(0, scored, some):
        # a product with inputs that are not contiguous takes forty times as long in bfloat16
        part = hidden[:, first : first + some].contiguous()
        target = tokens[:, tokens.shape[1] - scored + first :][:, : part.shape[1]]
        yield head_logits(whole, output, part, target), target


def slice_of(model: Any, windows: int) -> int:
    """Return how many tokens of each window go through the head at once."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return max(1, int(LOGIT_BYTES / (vocabulary * BYTES_PER_LOGIT * windows)))


def head_logits(
    model: Any,
    output: Any,
    hidden: Float[Tensor, "batch some hidden"],
    target: Int64[Tensor, "batch some"],
) -> Float[Tensor, "batch some vocabulary"]:
    """Return the logits that the model's head makes of `hidden`, which predict `target`."""
    given = type(output)(**{**output, "last_hidden_state": hidden})
    with body_gives(model, given), torch.no_grad():
        return model(input_ids=target, use_cache=False).logits


@contextmanager
def body_gives(model: Any, output: Any) -> Iterator[None]:
    """Let the model's body return `output`, so that a forward pass is the head and its scaling."""
    body = model.base_model
    try:
        body.forward = lambda *_, **__: output
        yield
    finally:
        body.__dict__.pop("forward", None)
