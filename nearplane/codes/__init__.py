"""Integers <-> bytes. Knows nothing of neural networks.

Which code should I use?

- `Huffman()`: integers of any size whose small values are frequent (HPTQ, HRTN). About 0.05 bits
  above entropy at 3 bits; a rare huge integer costs its own bits and nothing else.
- `Dense(bits)`: integers clipped to a few bits (RTN, GPTQ, SSQR); outliers go to the sparse rows
  beside them. The fastest to read.

`pack` and `unpack` turn a whole matrix (integers, steps, outliers) into the bytes a
checkpoint stores and back; `price` tells the size from a histogram alone. A new code is a
frozen dataclass like these two (`registry.Code`), one import line and one `register` line here,
and a document in docs/formats/. Bytes that break their document raise `CorruptError`.
"""

from nearplane.codes.alphabet import choose_alphabet, entropy, histogram
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.dense import Dense
from nearplane.codes.huffman import Huffman
from nearplane.codes.record import ENTRY_BYTES, Unpacked, inspect, pack, price, unpack
from nearplane.codes.registry import CODES, Code, by_tag, register
from nearplane.codes.steps import round_step, sixteen_bits

register(Huffman())
register(Dense())

__all__ = [
    "CODES",
    "ENTRY_BYTES",
    "Code",
    "CorruptError",
    "Dense",
    "Huffman",
    "Unpacked",
    "by_tag",
    "choose_alphabet",
    "entropy",
    "histogram",
    "inspect",
    "pack",
    "price",
    "register",
    "round_step",
    "sixteen_bits",
    "unpack",
]
