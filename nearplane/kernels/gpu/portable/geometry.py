"""Where codes of fixed width, steps and outliers lie in a layout for Triton kernels."""

import functools
from dataclasses import dataclass

WORD = 32  # bits
MANTISSA = 23  # bits of a float32
LANES = 32  # rows of a tile, one for each thread ("lane") of a warp
VECTOR = 4  # 32-bit words that a lane loads at once
STACK = 4  # tiles whose words are interleaved
RUN_COLUMNS = 128  # most columns of a run, whose sum is multiplied by one step
SPAN = 2**16  # columns of a stripe, within which 16 bits store the column of an outlier
PADDING = 1.03  # padding accepted for a faster shape: a factor of the size
WIDEST = 8  # most bits of a code
ALIGNED = 256  # bytes: sections begin at multiples of this


@dataclass(frozen=True)
class Geometry:
    """How the codes of a matrix are arranged in 32-bit words.

    - A unit is `fields` codes of one row in `words` words. `join` units of one group are
      interleaved column by column, so that the activations that a lane loads are contiguous.
    - A chunk is four units, loaded by one lane as `words` vectors of 16 bytes. A run is `run`
      chunks that share a step; or one chunk whose units may have steps of their own.
    - A tile is 32 rows, one for each lane; a block is `stack` tiles.

    The words are a tensor (block, chunk, word, tile of the block, lane, unit). Every group begins
    at a new unit and every row at a new chunk; padding has the code 0.
    """

    bits: int
    rows: int
    columns: int
    group_size: int
    join: int
    run: int
    stack: int

    @property
    def fields(self) -> int:
        """Codes of a unit."""
        return fields_of(self.bits)

    @property
    def words(self) -> int:
        """Words of a unit."""
        return self.fields * self.bits // WORD

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group_size)

    @property
    def joints(self) -> int:
        """Sets of `join` interleaved units in a group, padded to whole runs if a set is a chunk."""
        joints = -(-self.group_size // (self.fields * self.join))
        return -(-joints // self.run) * self.run

    @property
    def runs(self) -> int:
        """Runs of a row."""
        return -(-self.groups * self.joints * self.join // (VECTOR * self.run))

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.runs * self.run

    @property
    def blocks(self) -> int:
        """Blocks of the matrix."""
        return -(-self.rows // (LANES * self.stack))

    @property
    def tiles(self) -> int:
        """Tiles of the matrix."""
        return self.blocks * self.stack

    @property
    def stripes(self) -> int:
        """Stripes of a row: parts of 2^16 columns."""
        return -(-self.columns // SPAN)

    @property
    def word_count(self) -> int:
        """Words of the matrix, padding included."""
        return self.tiles * self.chunks * self.words * LANES * VECTOR

    @property
    def is_whole(self) -> bool:
        """Whether no column is padding."""
        return self.chunks * VECTOR * self.fields == self.columns


def fields_of(bits: int) -> int:
    """Return the fewest codes of `bits` bits that fill whole 32-bit words."""
    return WORD // (bits & -bits)


def window_of(bits: int) -> int:
    """Return how many neighbouring codes are extracted from one shifted word.

    All of them lie in the upper 9 bits of a float32 mantissa; see `few.raised`.
    """
    return 9 // bits


def first_bit(bits: int) -> int:
    """Return the bit at which a unit begins, chosen so that its first codes need no shift."""
    return MANTISSA - bits * window_of(bits)


@functools.lru_cache(1024)
def geometry(bits: int, rows: int, columns: int, group_size: int) -> Geometry:
    """Return the arrangement with the longest runs and blocks that needs at most 3 % padding."""
    longest = RUN_COLUMNS // (VECTOR * fields_of(bits))
    shapes = [(VECTOR, run) for run in (8, 4, 2, 1) if run <= longest] + [(2, 1), (1, 1)]
    stack = STACK if -(-rows // 128) * 128 <= PADDING * (-(-rows // LANES) * LANES) else 1
    every = [Geometry(bits, rows, columns, group_size, *shape, stack) for shape in shapes]
    fewest = min(made.chunks for made in every)
    return next(made for made in every if made.chunks <= PADDING * fewest)


@dataclass(frozen=True)
class Sections:
    """The byte at which each section of a layout begins.

    Outliers are stored as in the sliced ELLPACK format: a slot holds one outlier, or padding, for
    each of the 32 rows of a tile.

    - `words`: the codes.
    - `steps`: (block, group, lane, tile of the block); or one a column; or one.
    - `counts`: outliers of each row, int32 (stripe, tile, lane).
    - `starts`: the first slot of each tile and stripe, int32 (tile, stripe), then their number.
    - `entries`: value << 16 | column in the stripe, uint32 (slot, 32); see `place_of`.
    - `size`: bytes of the layout.
    """

    words: int
    steps: int
    counts: int
    starts: int
    entries: int
    size: int


def sections(made: Geometry, step_bytes: int, slots: int, has_outliers: bool) -> Sections:
    """Return where the sections begin.

    - `slots`: slots of outliers in all tiles and stripes.
    """
    outliers = int(has_outliers)
    sizes = [
        ALIGNED,
        4 * made.word_count,
        step_bytes,
        4 * made.stripes * made.tiles * LANES * outliers,
        4 * (made.tiles * made.stripes + 1) * outliers,
        4 * slots * LANES,
    ]
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + -(-size // ALIGNED) * ALIGNED)
    return Sections(*ends[1:])


def place_of(lane: int) -> int:
    """Return the position in a slot of a lane's outlier.

    Neighbouring lanes are not neighbours in a slot; else a compiler would give one thread several
    of them to load.
    """
    return lane * 5 % LANES
