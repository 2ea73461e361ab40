"""Check that a GGUF file's header ends within the file, before a library parses it.

Format: magic, version, number of tensors and of keys; then keys with values, then tensors.
"""

import mmap
import struct
from pathlib import Path

from nearplane.codes.corrupt import CorruptError, require
from nearplane.codes.reader import Reader
from nearplane.types import NearplaneError

MAGIC, VERSIONS = b"GGUF", (2, 3)
START = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
LENGTH, KIND = struct.Struct("<Q"), struct.Struct("<I")
ARRAY_HEAD = struct.Struct("<IQ")  # kind of the elements, how many
PLACE = struct.Struct("<IQ")  # a tensor's type, and where it begins
STRING, ARRAY = 8, 9
# bytes of a value, by kind
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
MOST_DIMENSIONS = 8
LEAST_KEY, LEAST_TENSOR = 13, 24  # fewest bytes of a key's and of a tensor's entry


def check_gguf(path: Path) -> None:
    """Raise NearplaneError, naming the file, if its header describes more than the file holds."""
    try:
        with path.open("rb") as file:
            require(path.stat().st_size >= START.size, "it is too short")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                _check(whole)
    except (CorruptError, OSError) as error:
        raise NearplaneError(f"{path} is no whole GGUF file: {error}") from error


def _check(whole: mmap.mmap) -> None:
    view = memoryview(whole)
    reader = Reader(view)
    try:
        magic, version, tensors, keys = reader.fields(START, "the header")
        require(magic == MAGIC and version in VERSIONS, "it does not begin as one")
        few = keys * LEAST_KEY + tensors * LEAST_TENSOR <= reader.left
        require(few, f"{keys} keys and {tensors} tensors are not in {reader.left} bytes")
        for _ in range(keys):
            _skip_string(reader)
            _skip_value(reader, *reader.fields(KIND, "a key's kind"))
        for _ in range(tensors):
            _skip_tensor(reader, len(view))
    finally:
        # a mapping cannot be closed while views of it exist
        reader.view.release()
        view.release()


def _skip_string(reader: Reader) -> None:
    (size,) = reader.fields(LENGTH, "a string's length")
    reader.take(size, "a string").release()


def _skip_value(reader: Reader, kind: int) -> None:
    if kind == STRING:
        return _skip_string(reader)
    if kind != ARRAY:
        require(kind in SIZES, f"a value's kind {kind} is unknown")
        return reader.take(SIZES[kind], "a value").release()
    inner, count = reader.fields(ARRAY_HEAD, "an array's head")
    if inner == STRING:
        require(count <= reader.left, f"an array of {count} strings is cut short")
        for _ in range(count):
            _skip_string(reader)
        return None
    require(inner in SIZES, f"an array's kind {inner} is unknown")
    return reader.take(count * SIZES[inner], "an array").release()


def _skip_tensor(reader: Reader, size: int) -> None:
    _skip_string(reader)
    (dimensions,) = reader.fields(KIND, "a tensor's dimensions")
    require(dimensions <= MOST_DIMENSIONS, f"a tensor has {dimensions} dimensions")
    reader.take(LENGTH.size * dimensions, "a tensor's shape").release()
    _, at = reader.fields(PLACE, "a tensor's place")
    require(at <= size, f"a tensor begins at {at} of {size} bytes")
