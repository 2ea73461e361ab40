"""The header of a record: its first 32 bytes (docs/formats/record.md)."""

import struct
from dataclasses import dataclass

from nearplane.codes import ladder, steps
from nearplane.codes.corrupt import require
from nearplane.codes.reader import Reader
from nearplane.codes.registry import by_tag

MAGIC, VERSION = b"NPLR", 1
# magic, version, code_tag, step_form, step_type, rows, columns, group_size, outlier_bytes,
# code_bytes
LAYOUT = struct.Struct("<4sBBBBIIIIQ")
# step_form: one step for the matrix, per column, per group; per column times a factor per row;
# a step and a minimum per group
SCALAR, COLUMN, GROUP, COLUMN_AND_ROW, GROUP_AND_MINIMUM = 0, 1, 2, 3, 4
CRC_BYTES = 4


@dataclass(frozen=True)
class Header:
    """The shape of a matrix, how its integers and steps are stored, and in how many bytes."""

    code_tag: int
    step_form: int
    step_type: int
    rows: int
    columns: int
    group_size: int
    outlier_bytes: int
    code_bytes: int

    @property
    def form_of_steps(self) -> int:
        """The step form of the steps alone, without factors of rows and without minima."""
        return {COLUMN_AND_ROW: COLUMN, GROUP_AND_MINIMUM: GROUP}.get(
            self.step_form, self.step_form
        )

    @property
    def step_shape(self) -> tuple[int, int]:
        """The shape of the step tensor: (1, 1), (1, columns) or (rows, groups)."""
        if self.step_form == SCALAR:
            return 1, 1
        if self.form_of_steps == COLUMN:
            return 1, self.columns
        return self.rows, -(-self.columns // self.group_size)

    @property
    def step_count(self) -> int:
        rows, groups = self.step_shape
        return rows * groups

    @property
    def minimum_count(self) -> int:
        return self.step_count if self.step_form == GROUP_AND_MINIMUM else 0

    @property
    def step_bytes(self) -> int:
        """The bytes of the steps and of the minima."""
        return steps.stored_bytes(self.step_type, self.step_count + self.minimum_count)

    @property
    def row_step_bytes(self) -> int:
        return ladder.row_bytes(self.rows) if self.step_form == COLUMN_AND_ROW else 0

    @property
    def codes_at(self) -> int:
        """The offset of the codes."""
        return LAYOUT.size + self.step_bytes + self.row_step_bytes

    @property
    def record_bytes(self) -> int:
        sections = self.codes_at - LAYOUT.size + self.code_bytes + self.outlier_bytes
        return LAYOUT.size + sections + CRC_BYTES

    def to_bytes(self) -> bytes:
        shape = self.rows, self.columns, self.group_size, self.outlier_bytes, self.code_bytes
        kinds = VERSION, self.code_tag, self.step_form, self.step_type
        return LAYOUT.pack(MAGIC, *kinds, *shape)


def step_form(shape: tuple[int, int], rows: int, columns: int, group_size: int) -> int:
    """Return SCALAR, COLUMN or GROUP for steps of `shape`; ValueError if none of them fits."""
    if not 1 <= group_size <= columns:
        raise ValueError(f"{group_size=} is not in 1 .. {columns=}; a whole row is columns")
    if group_size == columns and shape == (1, 1):
        return SCALAR
    if group_size == columns and shape == (1, columns):
        return COLUMN
    if shape == (rows, -(-columns // group_size)):
        return GROUP
    raise ValueError(
        f"steps of shape {shape} fit no form for {rows=}, {columns=}, {group_size=}; "
        "one step for the matrix or a column goes with group_size=columns"
    )


def read_header(reader: Reader) -> Header:
    """Read the header; CorruptError unless its sections fill exactly the bytes that follow."""
    magic, version, *fields = reader.fields(LAYOUT, "record header")
    require(magic == MAGIC, f"a record begins with {MAGIC!r}, not {magic!r}")
    require(version == VERSION, f"record version {version} is unknown; this reads {VERSION}")
    code_tag, form, kind, rows, columns, group_size, outlier_bytes, code_bytes = fields
    require(SCALAR <= form <= GROUP_AND_MINIMUM, f"step form {form} is unknown")
    # "outlier_bytes MUST be 0 for step forms 3 and 4"
    alone = form not in (COLUMN_AND_ROW, GROUP_AND_MINIMUM) or not outlier_bytes
    require(alone, "a record has outliers beside factors of rows or minima")
    # "rows and columns MUST be in 1 .. 2^31 - 1"
    require(1 <= rows < 2**31 and 1 <= columns < 2**31, f"shape ({rows}, {columns}) is impossible")
    require(1 <= group_size <= columns, f"group_size {group_size} of {columns} columns")
    whole = form in (GROUP, GROUP_AND_MINIMUM) or group_size == columns
    require(whole, f"step form {form} needs group_size {columns}, not {group_size}")
    # "rows * columns MUST NOT exceed what code_bytes can hold in that code"
    fits = rows * columns <= by_tag(code_tag).most_per_byte * code_bytes
    require(fits, f"{rows} x {columns} integers cannot be in {code_bytes} bytes")
    header = Header(code_tag, form, kind, rows, columns, group_size, outlier_bytes, code_bytes)
    size = LAYOUT.size + reader.left
    require(header.record_bytes == size, f"a record of {header.record_bytes} bytes has {size}")
    return header
