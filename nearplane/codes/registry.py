"""The interface that every code implements, and the table of codes by tag."""

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from nearplane.codes.corrupt import CorruptError


@runtime_checkable
class Code(Protocol):
    """What a code offers; an implementation is a frozen dataclass whose fields are its options.

    - `name`: for people; `tag`: the number in a record's header that selects this code.
    - `most_per_byte`: the most integers that one byte can stand for. A reader uses it to refuse
      impossible shapes before it allocates memory.

    Options are for `encode` only: `decode` finds every choice of the encoder in the bytes.
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
        """Return an upper bound of the size in bytes of any matrix with this histogram."""
        ...


CODES: dict[int, Code] = {}


def register(code: Code) -> None:
    """Add a code to the table. Its tag must never change: stored records refer to it."""
    if code.tag in CODES:
        raise ValueError(f"tag {code.tag} is taken by {CODES[code.tag].name!r}")
    CODES[code.tag] = code


def by_tag(tag: int) -> Code:
    """Return the code with this tag; CorruptError if there is none."""
    if tag not in CODES:
        raise CorruptError(f"code tag {tag} is unknown; known are {sorted(CODES)}")
    return CODES[tag]
