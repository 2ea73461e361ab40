"""A cursor over untrusted bytes: nothing is taken that is not there."""

import struct

from nearplane.codes.corrupt import require


class Reader:
    """Hand out consecutive parts of `buffer`; a part that ends beyond it is a CorruptError."""

    def __init__(self, buffer: bytes | memoryview):
        self.view = memoryview(buffer).cast("B")
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self.view) - self.at

    def take(self, size: int, what: str) -> memoryview:
        """Return the next `size` bytes without copying them."""
        require(0 <= size <= self.left, f"{what} needs {size} bytes, {self.left} are left")
        part = self.view[self.at : self.at + size]
        self.at += size
        return part

    def fields(self, layout: struct.Struct, what: str) -> tuple:
        """Return the next fixed-size fields."""
        return layout.unpack(self.take(layout.size, what))
