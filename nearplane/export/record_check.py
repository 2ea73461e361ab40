"""Whether a record is whole and of the layer that it is stored for, without decoding it."""

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
    """Raise NearplaneError, naming `name`, unless `record` is intact and as `entry` says.

    - `entry`: the layer's bytes, rows and columns in config.json.
    """
    checked_header(record, entry, name)
    if not _crc_fits(record):
        raise NearplaneError(f"{name}: the record's CRC-32 does not match its bytes")


def checked_header(record: Tensor, entry: dict[str, Any], name: str) -> Header:
    """Return the header of a record that is as `entry` says; its sections stay unread."""
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


def _crc_fits(record: UInt8[Tensor, " bytes"]) -> bool:
    # "CRC-32 of everything before it"
    view = record.cpu().numpy().data
    return zlib.crc32(view[:-CRC_BYTES]) == int.from_bytes(view[-CRC_BYTES:], "little")
