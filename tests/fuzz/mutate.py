"""Damage to bytes and to JSON, from a seeded random generator; nothing here knows a format."""

import json
import struct
import zlib
from random import Random
from typing import Any

LONGEST_SENTENCE = 2000

EXTREMES = [
    *(0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 127, 128, 255, 256, 2047, 2048, 4095),
    *(2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**40, 2**53, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
FLOATS = [0.0, -0.0, 1e-45, 1e38, 3.5e38, float("inf"), float("-inf"), float("nan")]
TEXTS = [
    *("", " ", "a", "../x", "/etc/passwd", "a\0b", "a\nb", "\u202ea", "\ud800", "é" * 300),
    *("x" * 5000, ".", "..", "a/b", "a\\b", "CON", "-1", "1e999", "nan", "{{ 7 * 7 }}", "<s>"),
]


def extreme(random: Random, near: int = 0) -> int:
    """Return a number that a length field should not be trusted to hold."""
    beside = [near + 1, near - 1, 2 * near, near // 2, near + 8, near + 2**32, -near]
    return random.choice(EXTREMES + beside)


def set_field(data: bytearray, at: int, width: int, random: Random) -> None:
    """Put an extreme number in `width` bytes at `at`, little-endian."""
    now = int.from_bytes(data[at : at + width], "little")
    value = extreme(random, now) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, "little")


def damage_once_(data: bytearray, random: Random) -> None:
    """Flip, set, cut, repeat, insert or move some bytes."""
    size = len(data)
    if not size:
        data += random.randbytes(random.randrange(1, 40))
        return
    at, some = random.randrange(size), random.choice([1, 2, 4, 8, 64, 512])
    kind = random.randrange(9)
    if kind == 0:
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[at] = random.choice([0, 1, 127, 128, 255, random.randrange(256)])
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        data += random.choice([bytes(some), random.randbytes(some), data[at : at + some]])
    elif kind == 4:
        del data[at : at + some]
    elif kind == 5:
        data[at:at] = data[random.randrange(size) :][:some]
    elif kind == 6:
        there = random.randrange(size)
        data[at : at + some] = data[there : there + some]
    elif kind == 7:
        data[at : at + some] = random.randbytes(len(data[at : at + some]))
    else:
        width = random.choice([1, 2, 4, 8])
        set_field(data, min(at, max(0, size - width)), min(width, size), random)


def damaged(data: bytes, random: Random, most: int = 3) -> bytes:
    """Return `data` after one to `most` damages."""
    result = bytearray(data)
    for _ in range(random.randint(1, most)):
        damage_once_(result, random)
    return bytes(result)


def any_json(random: Random, depth: int = 2) -> Any:
    """Return a value of any type that JSON has, the awkward ones often."""
    kind = random.randrange(9 if depth else 7)
    if kind == 0:
        return random.choice([None, True, False])
    if kind in (1, 2):
        return extreme(random) * random.choice([1, 1, 1, -1])
    if kind == 3:
        return random.choice([*FLOATS, random.random()])
    if kind == 4:
        return 10 ** random.choice([25, 400, 4000])
    if kind in (5, 6):
        return random.choice(TEXTS)
    if kind == 7:
        return [any_json(random, depth - 1) for _ in range(random.randrange(4))]
    return {random.choice(TEXTS): any_json(random, depth - 1) for _ in range(random.randrange(4))}


def damaged_json(value: Any, random: Random, most: int = 3) -> Any:
    """Return a copy of `value` in which one to `most` places have another value, name or none."""
    result = json.loads(json.dumps(value))
    for _ in range(random.randint(1, most)):
        found = list(places(result)) if isinstance(result, dict | list) else []
        if not found:
            return any_json(random)
        holder, key = random.choice(found)
        _change_(holder, key, random)
    return result


def places(value: Any) -> Any:
    """Yield (holder, key) of everything below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


def _change_(holder: Any, key: Any, random: Random) -> None:
    kind = random.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(TEXTS)] = holder.pop(key)
    elif kind == 2 and isinstance(holder[key], int | float):
        now = holder[key] if isinstance(holder[key], int) else 0
        holder[key] = extreme(random, now)
    elif kind == 3 and isinstance(holder, dict):
        holder[random.choice(TEXTS)] = holder[key]
    else:
        holder[key] = any_json(random)


def json_text(value: Any, random: Random) -> bytes:
    """Return JSON of `value`, lone surrogates and NaN as Python writes them; at times damaged."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.8)
    data = text.encode("utf-8", "surrogatepass")
    return damaged(data, random) if random.random() < 0.1 else data


def damaged_safetensors(data: bytes, random: Random) -> bytes:
    """Return a safetensors file whose header says something else, or whose bytes are damaged."""
    kind = random.randrange(4)
    if kind == 0:
        return damaged(data, random)
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if kind == 1:
        return struct.pack("<Q", extreme(random, size) % 2**64) + data[8:]
    if kind == 2:
        _change_entry_(header, random)
    else:
        header = damaged_json(header, random)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def _change_entry_(header: dict[str, Any], random: Random) -> None:
    """Give one tensor another type, shape or place; the shape at times of as many elements."""
    name = random.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = random.randrange(4)
    if kind == 0:
        types = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0", "F4", "BF16", "F16", "F64", "C64", "X")
        entry["dtype"] = random.choice(types)
    elif kind == 1:
        entry["shape"] = [extreme(random) for _ in range(random.randrange(4))]
    elif kind == 2:
        entry["shape"] = random.choice(
            [[*entry["shape"], 1], [1, *entry["shape"]], [0, 2**60], [2**63, 0], [2**40, 0, 2**40]]
        )
    else:
        entry["data_offsets"] = [extreme(random, x) for x in entry["data_offsets"]]


def crc32(body: bytes) -> bytes:
    """Return the four bytes that end a record."""
    return zlib.crc32(body).to_bytes(4, "little")


def assert_one_sentence(error: Exception) -> None:
    """Assert that a refusal is one line that a terminal can print."""
    said = str(error)
    assert said.isprintable(), f"not one line that can be printed: {said!r}"
    assert len(said) < LONGEST_SENTENCE, f"{len(said)} characters"
