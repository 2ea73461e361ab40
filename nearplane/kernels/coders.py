"""Which encoder wrote a record, packed into one number.

A layout carries that number, so that saving a loaded model writes the same bytes again.
"""

import struct

from jaxtyping import UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes import huffman, rans
from nearplane.codes.dense import HEADER as DENSE_HEADER
from nearplane.codes.header import GROUP_AND_MINIMUM, Header
from nearplane.codes.record import Unpacked

OUTLIERS = 1 << 8  # set if the record has a section of outliers, even one without entries


def option(record: UInt8[Tensor, " bytes"], head: Header) -> int | None:
    """Return the number from which `coder` makes the encoder; None if no encoder of ours fits.

    None for a record with minima as well, which no layout holds: it is decoded at every use.
    """
    if head.step_form == GROUP_AND_MINIMUM:
        return None
    at = head.codes_at
    part = bytes(record[at : at + 64].numpy())
    chosen = {
        codes.Huffman.tag: _huffman,
        codes.Dense.tag: _dense,
        codes.Rans.tag: _rans,
    }[head.code_tag](part)
    has_outliers = OUTLIERS if head.outlier_bytes else 0
    return None if chosen is None else chosen | has_outliers


def coder(tag: int, chosen: int) -> tuple[codes.Code, bool]:
    """Return the encoder that `option` described, and whether the record has outliers."""
    number, has_outliers = chosen & 255, bool(chosen & OUTLIERS)
    if tag == codes.Dense.tag:
        return codes.Dense(number), has_outliers
    if tag == codes.Rans.tag:
        return codes.Rans(contexts=bool(number)), has_outliers
    return codes.Huffman(), has_outliers


def _huffman(part: bytes) -> int | None:
    span = struct.unpack_from(huffman.HEADER.format, part)[4]
    lengths = part[huffman.HEADER.size :][: (span + 2) // 2]
    # an encoder with our default limit writes no longer code word
    longest = max((max(byte & 15, byte >> 4) for byte in lengths), default=0)
    return 0 if longest <= codes.Huffman().limit else None


def _dense(part: bytes) -> int:
    return DENSE_HEADER.unpack_from(part)[1]


def _rans(part: bytes) -> int:
    _, _, row_classes, column_classes, *_ = rans.HEADER.unpack_from(part)
    return int(row_classes * column_classes > 1)


def is_lossless(held: Unpacked) -> bool:
    """Return whether a layout keeps every bit of a matrix.

    A layout loses the sign of a step −0.0, and outliers whose value is 0.
    """
    zeros = held.step[held.step == 0]
    no_outlier_is_zero = held.outliers is None or bool(held.outliers.value.all())
    return no_outlier_is_zero and not bool(zeros.signbit().any())
