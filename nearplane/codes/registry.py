"""The table of codes: a record's tag says which of them wrote its integers."""

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from nearplane.codes.corrupt import CorruptError


@runtime_checkable
class Code(Protocol):
    """What a code offers; an implementation is a frozen dataclass whose fields are its options.

    `decode` needs no option: every choice the encoder made stands in the bytes. A byte holds at
    most `most_per_byte` integers, so that a reader may refuse what cannot be there before it
    allocates anything.
    """

    name: ClassVar[str]
    tag: ClassVar[int]
    most_per_byte: ClassVar[int]

    def encode(self, integers: Int32[np.ndarray, "rows columns"]) -> bytes:
        """Return the bytes of `integers`; the same input gives the same bytes."""
        ...

    def decode(
        self, buffer: bytes | memoryview, rows: int, columns: int
    ) -> tuple[Int32[np.ndarray, "rows columns"], int]:
        """Return the integers and how many bytes at the start of `buffer` held them."""
        ...

    def bound(
        self, values: Int64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"]
    ) -> int:
        """Return a size in bytes that no arrangement of this histogram exceeds."""
        ...


CODES: dict[int, Code] = {}


def register(code: Code) -> None:
    """Add a code under its tag, which records refer to for ever."""
    if code.tag in CODES:
        raise ValueError(f"tag {code.tag} is taken by {CODES[code.tag].name!r}")
    CODES[code.tag] = code


def by_tag(tag: int) -> Code:
    """Return the code that a record's tag names."""
    if tag not in CODES:
        raise CorruptError(f"code tag {tag} is unknown; known are {sorted(CODES)}")
    return CODES[tag]
