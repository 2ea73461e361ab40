"""Check, without decoding it, that a record is undamaged and belongs to its layer."""

import zlib
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes.header import Header
from nearplane.types import NearplaneError

CRC_BYTES = 4


def check_record(record: Tensor, entry: dict[str, Any], name: str) -> None:
    """Raise NearplaneError unless the record is undamaged and has the size that `entry` states.

    - `entry`: what config.json says of the layer; `bytes`, `rows` and `columns` are used.
    - `name`: the layer's name, with which the error begins.
    """
    checked_header(record, entry, name)
    if not _crc_matches(record):
        raise NearplaneError(f"{name}: the record's CRC-32 does not match its bytes")


def checked_header(record: Tensor, entry: dict[str, Any], name: str) -> Header:
    """Return the header of a record after comparing it with `entry`; nothing else is read.

    NearplaneError if they disagree.
    """
    if record.dtype != torch.uint8 or list(record.shape) != [entry["bytes"]]:
        raise NearplaneError(
            f"{name}: the record has shape {list(record.shape)} of {record.dtype}, "
            f"where config.json says {entry['bytes']} bytes"
        )
    try:
        header = codes.inspect(record)
    except codes.CorruptError as error:
        raise NearplaneError(f"{name}: {error}") from error
    if (header.rows, header.columns) != (entry["rows"], entry["columns"]):
        raise NearplaneError(
            f"{name}: the record is of {header.rows} x {header.columns} weights, "
            f"where config.json says {entry['rows']} x {entry['columns']}"
        )
    return header


def _crc_matches(record: UInt8[Tensor, " bytes"]) -> bool:
    # docs/formats/record.md:
    # "CRC-32 of everything before it"
    view = record.cpu().numpy().data
    return zlib.crc32(view[:-CRC_BYTES]) == int.from_bytes(view[-CRC_BYTES:], "little")
