"""Integers <-> bytes: entropy coders, and the bytes that a checkpoint stores for one weight.

Nothing here knows about models or layers. In: a matrix of int32 codes with its steps (others
write scales) and sparse outliers. Out: a record, the uint8 tensor that a checkpoint stores for
that matrix; and back. Bytes that break the rules of docs/formats/ raise `CorruptError`. This
folder imports only nearplane/types.py, op.py and rows.py from the rest of the package.

Which code should I use?

- `Rans()`: integers of any size whose small values are frequent (ECLQ). The probability table
  depends on how large the integers of the row and of the column are, so the size is usually below
  the entropy of a single table.
- `Huffman()`: the same with one table and whole bits: about 0.05 bits above its entropy at 3 bits,
  and a decoder of a page. A rare huge integer costs its own bits and nothing else in both.
- `Dense(bits)`: integers clipped to a few bits (RTN, GPTQ, SSQR); outliers are stored as sparse
  rows beside them. The fastest to read.

`pack` and `unpack` turn a whole matrix into a record and back. `price` predicts the size under
Huffman from a histogram alone, `fit(code).likely_bytes` the size of the codes under Rans.

Read record.py first, then dense.py, the simplest code.

| file | what is in it |
|---|---|
| record | one quantized matrix <-> the bytes of its record |
| header | the first 32 bytes of a record |
| host | integers of an accelerator, brought to the machine's memory |
| steps, ladder | steps <-> bytes: as floats, or as points of one logarithmic grid |
| sparse, gaps | outliers <-> bytes: columns, or Golomb-Rice codes of the gaps between them |
| cut | the record of a block of rows and columns of a matrix |
| block_types | what the block types of GGUF files hold |
| resident | the bytes that a loaded layer holds, and the product with them; kernels speed it up |
| registry | the interface `Code`, and the table of codes by their tag |
| dense | code: every integer in the same number of bits |
| huffman | code: canonical Huffman |
| alphabet, lengths, canonical, lanes | Huffman's alphabet, code lengths, code words, bit streams |
| rans | code: range asymmetric numeral systems (rANS) |
| contexts, fitting, shapes | which integers share a probability table, and those tables |
| frequencies, stored_tables, classes, bands | rANS's frequencies, their bytes, its bit streams |
| ans_coder | the coder of these streams: constriction's, or the same in Python |
| bitstream, reader, corrupt | bit fields, a bounds-checked cursor, the error for bad bytes |

To add a code: write a frozen dataclass with the members of `registry.Code` in a file of its own,
add one import line and one `register` line below, and describe its bytes in docs/formats/. The
tests of tests/contracts/test_codes.py and tests/codes/test_record.py then run for it.
"""

from nearplane.codes.alphabet import choose_alphabet, entropy, histogram
from nearplane.codes.contexts import Contexts
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.dense import Dense
from nearplane.codes.fitting import Tables, choose_contexts, fit
from nearplane.codes.host import on_host
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
    "on_host",
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
