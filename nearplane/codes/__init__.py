"""Integers <-> bytes. Knows nothing of neural networks.

Which code should I use?

- `Rans()`: integers of any size whose small values are frequent (ECLQ). Tables depend on the
  spread of the row and the column, so it is usually below the entropy of one table.
- `Huffman()`: the same with one table and whole bits: about 0.05 bits above its entropy at 3 bits,
  and a decoder of a page. A rare huge integer costs its own bits and nothing else in both.
- `Dense(bits)`: integers clipped to a few bits (RTN, GPTQ, SSQR); outliers go to the sparse rows
  beside them. The fastest to read.

`pack` and `unpack` turn a whole matrix (integers, steps, outliers) into the bytes a
checkpoint stores and back; `price` tells the size under Huffman from a histogram alone,
`fit(code).likely_bytes` that of the codes under Rans. A new code is a
frozen dataclass like these (`registry.Code`), one import line and one `register` line here,
and a document in docs/formats/. Bytes that break their document raise `CorruptError`.
"""

from nearplane.codes.alphabet import choose_alphabet, entropy, histogram
from nearplane.codes.contexts import Contexts
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.dense import Dense
from nearplane.codes.fitting import Tables, choose_contexts, fit
from nearplane.codes.huffman import Huffman
from nearplane.codes.ladder import ladder_steps, round_base
from nearplane.codes.rans import Rans
from nearplane.codes.record import (
    ENTRY_BYTES,
    Unpacked,
    inspect,
    pack,
    price,
    record_bytes,
    step_bytes,
    unpack,
)
from nearplane.codes.registry import CODES, Code, by_tag, register
from nearplane.codes.steps import round_step, sixteen_bits

register(Huffman())
register(Dense())
register(Rans())

__all__ = [
    "CODES",
    "ENTRY_BYTES",
    "Code",
    "Contexts",
    "CorruptError",
    "Dense",
    "Huffman",
    "Rans",
    "Tables",
    "Unpacked",
    "by_tag",
    "choose_alphabet",
    "choose_contexts",
    "entropy",
    "fit",
    "histogram",
    "inspect",
    "ladder_steps",
    "pack",
    "price",
    "record_bytes",
    "register",
    "round_base",
    "round_step",
    "sixteen_bits",
    "step_bytes",
    "unpack",
]
