"""Damaged calibration files: sequences of tokens or one clear sentence."""

import functools
import io
import json
from pathlib import Path
from random import Random
from typing import Any

from nearplane.types import NearplaneError
from nearplane.walk.calibration import CalibrationRequest, calibrate
from tests.cli import tiny
from tests.fuzz.mutate import (
    TEXTS,
    any_json,
    assert_one_sentence,
    damaged,
    damaged_json,
    json_text,
)

NAMES = ("a.txt", "a.jsonl", "a.json", "a.parquet")
TALK = [{"role": "user", "content": tiny.TEXT[:90]}, {"role": "assistant", "content": "the plane"}]
RECORDS = [{"text": tiny.TEXT[:200], "n": 1}, {"messages": TALK}, {"content": "a"}, tiny.TEXT[:50]]


@functools.cache
def tokenizer() -> Any:
    return tiny.tokenizer(bos=True)


@functools.cache
def parquet_files() -> list[bytes]:
    """Return parquet of several column types, whole."""
    import pyarrow
    import pyarrow.parquet

    texts = [tiny.TEXT[at : at + 60] for at in range(0, 600, 60)]
    columns: list[dict[str, Any]] = [
        {"text": texts},
        {"n": list(range(10)), "content": [*texts[:9], None]},
        {"messages": [TALK] * 10},
        {"text": [text.encode() for text in texts]},
        {"text": pyarrow.array(texts).dictionary_encode(), "t": pyarrow.array([2**62] * 10, "i8")},
        {"when": pyarrow.array([2**62] * 10, pyarrow.timestamp("ns")), "text": texts},
    ]
    made = []
    for some in columns:
        for compression in ("none", "snappy", "zstd"):
            stream = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table(some), stream, compression=compression)
            made.append(stream.getvalue())
    return made


class TextTarget:
    """Calibration files of every kind, with and without a chat template."""

    def __init__(self, place: Path, names: tuple[str, ...] = NAMES):
        self.place = place
        self.names = names

    def draw(self, random: Random) -> dict[str, bytes]:
        name = random.choice(self.names)
        return {name: _content(name, random)}

    def check(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = self.place / name
            path.write_bytes(content)
            said = []
            for chat in (False, True):
                try:
                    calibrate(path, tokenizer(), CalibrationRequest(4, 16, chat))
                except NearplaneError as error:
                    assert_one_sentence(error)
                    said.append(error)
            if len(said) == 2:
                raise said[0]


def _content(name: str, random: Random) -> bytes:
    if name.endswith(".txt"):
        return damaged(tiny.TEXT.encode() * random.choice([0, 1, 1, 20]), random)
    if name.endswith(".parquet"):
        return damaged(random.choice(parquet_files()), random, most=5)
    lines = [_line(random) for _ in range(random.randrange(1, 8))]
    joined = random.choice([b"\n", b"\r\n", b"\n\n", b""]).join(lines)
    return damaged(joined, random) if random.random() < 0.3 else joined


def _line(random: Random) -> bytes:
    kind = random.randrange(6)
    if kind == 0:
        return random.choice([b"[", b'{"text":']) * random.choice([1, 900, 60_000])
    if kind == 1:
        return json.dumps({"text": "a" * 10 ** random.randrange(6)}).encode()
    if kind == 2:
        return json_text(any_json(random, 3), random)
    if kind == 3:
        content = any_json(random, 3)
        return json_text({"messages": [{"role": random.choice(TEXTS), "content": content}]}, random)
    return (
        json_text(damaged_json(random.choice(RECORDS), random, 2), random)
        if kind == 4
        else (json.dumps(random.choice(RECORDS)).encode())
    )
