"""Calibration text -> sequences of tokens, with an account of every token."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearplane.model.output_head import embedding_of, rows_of, vocabulary
from nearplane.types import NearplaneError
from nearplane.walk.documents import Source, read_documents
from nearplane.walk.language_sample import SHARE, with_sample
from nearplane.walk.sources import Sources, as_sources, interleaved

DEFAULT_LENGTH = 512  # tokens of a sequence, or the most that the model takes
# The error of a Hessian of n columns falls as n / tokens; docs/CALIBRATION.md has its effect
TOKENS_A_COLUMN = 24  # by default, for each column of the widest layer
FEWEST_TOKENS, MOST_TOKENS = 16 * 1024, 128 * 2048
READ = 16  # at most this many times the tokens in use are read, to pick sequences from a long text

SHOWN = 80  # characters of the first document

Text = str | Path | list[str] | list[Path] | dict[str, float] | Sources | Tensor | list[Tensor]


@dataclass(frozen=True)
class CalibrationRequest:
    """How much calibration to use, and how.

    - `sequences`, `length`: at most so many sequences of exactly so many tokens.
    - `chat_template`: whether every document goes through the tokenizer's chat template.
    - `spread`: whether sequences are taken evenly from the whole text, or from its beginning.
    - `languages`: whether some of them are of nearplane's own sample of languages and source code.
    """

    sequences: int
    length: int
    chat_template: bool = False
    spread: bool = True
    languages: bool = False


@dataclass(frozen=True)
class TokenAccount:
    """Where the tokens of a calibration went; `used`, `dropped` and `padded` count tokens.

    - `opened_by`: the token that every sequence starts with; None if there is none.
    - `fingerprint`: SHA-256 of the sequences.
    - `language_sample`: how many sequences are nearplane's own sample.
    - `weights`: of several sources; {} for one.
    - `begins`: how the first document begins, as the model sees it; it is not stored.
    - `remarks`: on what was not read.
    """

    source: str
    documents: int
    sequences: int
    length: int
    used: int
    dropped: int
    padded: int
    opened_by: int | None
    fingerprint: str
    chat_template: bool = False
    spread: bool = False
    language_sample: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    begins: str = ""
    remarks: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return the account as one line for people."""
        opening = "" if self.opened_by is None else f", each opened by token {self.opened_by}"
        own = self.language_sample
        sample = f", {own} of them of nearplane's sample of languages and code" if own else ""
        return (
            f"{self.sequences} sequences of {self.length} tokens from {self.documents} documents "
            f"of {self.source}{opening}{sample}: {self.used} tokens used, {self.dropped} dropped, "
            f"{self.padded} padded"
        )

    def of(self, packed: Int64[Tensor, "n length"], **changes: Any) -> "TokenAccount":
        """Return the account of other sequences that are made of these, with further changes."""
        counted = {"sequences": len(packed), "used": packed.numel()}
        return replace(self, **counted, fingerprint=fingerprint(packed), **changes)

    def for_json(self) -> dict[str, Any]:
        private = ("begins", "remarks")
        kept = {name: value for name, value in asdict(self).items() if name not in private}
        return kept if self.weights else {n: v for n, v in kept.items() if n != "weights"}


def default_length(model: Any) -> int:
    """Return DEFAULT_LENGTH, or the longest sequence that the model takes."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)


def default_sequences(columns: int, length: int, processes: int = 1) -> int:
    """Return how many sequences have TOKENS_A_COLUMN tokens for each of so many columns.

    At least FEWEST_TOKENS and at most MOST_TOKENS tokens, and one sequence for every process.
    """
    tokens = min(max(TOKENS_A_COLUMN * columns, FEWEST_TOKENS), MOST_TOKENS)
    return max(ceil(tokens / length), processes)


def check_size(sequences: int, length: int) -> None:
    """Raise NearplaneError for no sequences, or for sequences of less than 2 tokens."""
    if sequences < 1 or length < 2:
        raise NearplaneError("calibration needs at least 1 sequence of at least 2 tokens")


def calibrate(
    text: Text, tokenizer: Any, wanted: CalibrationRequest
) -> tuple[Int64[Tensor, "n length"], TokenAccount]:
    """Return packed sequences of tokens and their account.

    Documents are joined by the tokenizer's end-of-sequence token and cut; an incomplete last
    sequence is dropped, nothing is padded. With `spread`, up to READ times the wanted sequences are
    read, and the wanted ones taken evenly from these, since neighbouring ones are alike. Every
    sequence starts with the beginning-of-sequence token if the tokenizer puts one before a text. A
    two-dimensional tensor is used as it is; nothing is mixed into tokens.

    Raises NearplaneError for text that is missing, unreadable or too short for one sequence.
    """
    check_size(wanted.sequences, wanted.length)
    if wanted.languages and tokenizer is not None and not holds_tokens(text):
        most = wanted.sequences // SHARE
        rest = replace(wanted, sequences=wanted.sequences - most, languages=False)
        tokens, account = calibrate(text, tokenizer, rest)
        mixed, count = with_sample(tokens, tokenizer, account.opened_by is not None, most)
        return mixed, account.of(mixed, language_sample=count)
    text = as_sources(text)
    if isinstance(text, Sources):
        return calibrate_sources(text, tokenizer, wanted)
    some = text[0] if isinstance(text, list) and text else text
    if isinstance(some, Tensor) and some.is_floating_point():
        raise NearplaneError("calibration tensors must hold tokens, which are integers")
    if isinstance(text, Tensor) and text.ndim == 2:
        if not text.numel():
            raise NearplaneError("the calibration tensor holds no token")
        tokens = text[: wanted.sequences].long()
        return tokens, account_of(tokens, "token tensors", len(text), text.numel(), None)
    source, documents = tokenized(text, tokenizer, wanted)
    name = source.name
    bos = opening_token(tokenizer) if tokenizer is not None else None
    if wanted.chat_template:
        # a template may have written the opening token itself
        documents = (document[document[:1] == [bos] :] for document in documents)
    body = wanted.length - (bos is not None)
    enough = wanted.sequences * body * (READ if wanted.spread else 1)
    first: list[list[int]] = []
    documents = noting_first(documents, first)
    stream, count = join(documents, getattr(tokenizer, "eos_token_id", None), enough)
    if len(stream) < body:
        raise NearplaneError(
            f"the calibration text {name} has {len(stream)} tokens, and one sequence needs "
            f"{body}: give a longer text or a smaller length"
        )
    packed = pack(stream[:enough], body, wanted.sequences, bos)
    account = account_of(packed, name, count, len(stream), bos)
    account = replace(account, chat_template=wanted.chat_template, spread=wanted.spread)
    begins = "" if tokenizer is None or not first else beginning(tokenizer, first[0])
    return packed, replace(account, begins=begins, remarks=(source.remark,) * bool(source.remark))


def calibrate_sources(
    sources: Sources, tokenizer: Any, wanted: CalibrationRequest
) -> tuple[Int64[Tensor, "n length"], TokenAccount]:
    """Return the sequences of all sources, each in proportion to its weight, and one account.

    Raises NearplaneError for fewer sequences than sources.
    """
    if wanted.sequences < len(sources.weights):
        raise NearplaneError(
            f"{wanted.sequences} sequences cannot come from {len(sources.weights)} sources: "
            "use more sequences"
        )
    parts, accounts = [], []
    for source, count in sources.sequences(wanted.sequences).items():
        tokens, account = calibrate(source, tokenizer, replace(wanted, sequences=count))
        parts.append(tokens)
        short = f"{source} fills {len(tokens)} of its {count} sequences"
        accounts.append(
            replace(account, remarks=(*account.remarks, *[short] * (len(tokens) < count)))
        )
    packed = interleaved(parts)
    return packed, accounts[0].of(
        packed,
        source=sources.name(),
        documents=sum(each.documents for each in accounts),
        dropped=sum(each.dropped for each in accounts),
        weights=dict(sources.weights),
        remarks=tuple(remark for each in accounts for remark in each.remarks),
    )


def noting_first(documents: Iterable[list[int]], first: list[list[int]]) -> Iterator[list[int]]:
    """Yield the documents, and put the first that is not empty into `first`."""
    for document in documents:
        if len(document) and not first:
            first.append(list(document))
        yield document


def beginning(tokenizer: Any, document: list[int]) -> str:
    """Return the first SHOWN characters of a document that is given as tokens."""
    try:
        text = tokenizer.decode(document[:SHOWN])
    # tokens may have been given that the tokenizer does not know
    except Exception:
        return ""
    return text[:SHOWN]


def opening_token(tokenizer: Any) -> int | None:
    """Return the beginning-of-sequence token if the tokenizer opens every text with it."""
    bos = getattr(tokenizer, "bos_token_id", None)
    opened = tokenizer("a").input_ids
    return bos if bos is not None and opened and opened[0] == bos else None


def tokenized(
    text: Text, tokenizer: Any, wanted: CalibrationRequest
) -> tuple[Source, Iterable[list[int]]]:
    """Return where a text comes from, and its documents as lists of tokens."""
    tensors_only = Source("token tensors", [])
    if isinstance(text, Tensor):
        return tensors_only, [text.flatten().tolist()]
    if holds_tokens(text):
        parts: Any = text
        return tensors_only, [part.flatten().tolist() for part in parts]
    if tokenizer is None:
        raise NearplaneError("the model has no tokenizer: calibrate with token tensors")
    documents: Any = text  # read_documents refuses what is no text
    source = read_documents(documents, tokenizer if wanted.chat_template else None)
    return source, (tokenizer(d, add_special_tokens=False).input_ids for d in source.documents)


def holds_tokens(text: Any) -> bool:
    """Whether a calibration is given as tokens: a tensor, or a list of tensors."""
    parts = text if isinstance(text, list) and text else [text]
    return all(isinstance(part, Tensor) for part in parts)


def join(
    documents: Iterable[list[int]], between: int | None, enough: int
) -> tuple[Int64[Tensor, " tokens"], int]:
    """Return documents joined by the token `between`, and their number; stops at enough."""
    stream: list[int] = []
    count = 0
    for document in documents:
        if not document:
            continue
        if stream and between is not None:
            stream.append(between)
        stream += document
        count += 1
        if len(stream) >= enough:
            break
    return torch.tensor(stream, dtype=torch.long, device="cpu"), count


def pack(stream: Int64[Tensor, " tokens"], body: int, sequences: int, bos: int | None) -> Tensor:
    """Return (n, length) sequences cut from the stream, each opened by `bos` if there is one.

    Of the m sequences that the stream fills, they are number ⌊i m / n⌋ for i = 0 .. n − 1.
    """
    count = len(stream) // body
    n = min(sequences, count)
    packed = stream[: count * body].view(count, body)[
        torch.arange(n, device="cpu") * count // max(n, 1)
    ]
    if bos is None:
        return packed
    return torch.cat([torch.full((n, 1), bos, device="cpu"), packed], dim=1)


def account_of(
    packed: Tensor, name: str, documents: int, read: int, bos: int | None
) -> TokenAccount:
    """Return the account of packed sequences out of `read` tokens."""
    opened = len(packed) if bos is not None else 0
    used = packed.numel()
    return TokenAccount(
        source=name,
        documents=documents,
        sequences=len(packed),
        length=packed.shape[1],
        used=used,
        dropped=read - (used - opened),
        padded=0,
        opened_by=bos,
        fingerprint=fingerprint(packed),
    )


def fingerprint(tokens: Int64[Tensor, "n length"]) -> str:
    """Return the SHA-256 of sequences, in hexadecimal."""
    return hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()


def check_tokens(model: Any, tokens: Int64[Tensor, "n length"]) -> None:
    """Raise NearplaneError when a token is not in the model's vocabulary."""
    embedding = embedding_of(model)
    known = vocabulary(model) if embedding is None else rows_of(embedding)
    low, high = (int(token) for token in tokens.aminmax())
    if low < 0 or high >= known:
        raise NearplaneError(
            f"the calibration holds the token {low if low < 0 else high}, but the model knows "
            f"0 .. {known - 1}: were the tokens made for another model?"
        )
