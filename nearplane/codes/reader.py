"""A bounds-checked cursor over untrusted bytes."""

import struct

from nearplane.codes.corrupt import require


class Reader:
    """Read consecutive parts of `buffer`; CorruptError if a part would end beyond it."""

    def __init__(self, buffer: bytes | memoryview):
        self.view = memoryview(buffer).cast("B")
        self.at = 0

    @property
    def left(self) -> int:
        """The number of bytes not read yet."""
        return len(self.view) - self.at

    def take(self, size: int, what: str) -> memoryview:
        """Return the next `size` bytes without copying them; `what` names them in an error."""
        require(0 <= size <= self.left, f"{what} needs {size} bytes, {self.left} are left")
        part = self.view[self.at : self.at + size]
        self.at += size
        return part

    def fields(self, layout: struct.Struct, what: str) -> tuple:
        """Return the next fields of fixed size, unpacked by `layout`."""
        return layout.unpack(self.take(layout.size, what))
