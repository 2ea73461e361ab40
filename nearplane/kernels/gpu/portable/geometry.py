"""Where the codes of a dense record lie in the words of a layout."""

import functools
from dataclasses import dataclass

WORD = 32  # bits
MANTISSA = 23  # bits of a float32
LANES = 32  # rows of a tile
VECTOR = 4  # words that a lane loads at once
STACK = 4  # tiles whose words are interleaved
RUN_COLUMNS = 128  # at most, between two products with a step
SPAN = 2**16  # columns of a stripe of outliers
PADDING = 1.03  # what a more regular shape may cost
WIDEST = 8  # bits of a code
ALIGNED = 256  # bytes that sections begin at multiples of


@dataclass(frozen=True)
class Geometry:
    """A matrix of fixed-width codes, cut into units of whole words.

    - A unit is `fields` columns of one row in `words` words. `join` units of one group take turns,
      column by column, so that what a lane multiplies by is contiguous.
    - A chunk is four units, loaded by one lane as `words` vectors of 16 bytes; a run is `run`
      chunks that share a step, or one chunk whose units may not.
    - A tile is 32 rows, one a lane; `stack` tiles are a block.

    Words lie as [block][chunk][word][tile of the block][lane][unit]. Groups begin at units, rows of
    groups at chunks, and padding has the code 0.
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
        return fields_of(self.bits)

    @property
    def words(self) -> int:
        return self.fields * self.bits // WORD

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group_size)

    @property
    def joints(self) -> int:
        """Sets of `join` units in a group: whole runs if one is a chunk."""
        joints = -(-self.group_size // (self.fields * self.join))
        return -(-joints // self.run) * self.run

    @property
    def runs(self) -> int:
        """Runs of a row."""
        return -(-self.groups * self.joints * self.join // (VECTOR * self.run))

    @property
    def chunks(self) -> int:
        return self.runs * self.run

    @property
    def blocks(self) -> int:
        return -(-self.rows // (LANES * self.stack))

    @property
    def tiles(self) -> int:
        return self.blocks * self.stack

    @property
    def stripes(self) -> int:
        """Parts of a row that 16 bits count the columns of."""
        return -(-self.columns // SPAN)

    @property
    def word_count(self) -> int:
        return self.tiles * self.chunks * self.words * LANES * VECTOR

    @property
    def is_whole(self) -> bool:
        """Whether no column is padding."""
        return self.chunks * VECTOR * self.fields == self.columns


def fields_of(bits: int) -> int:
    """Return the fewest codes that fill whole words."""
    return WORD // (bits & -bits)


def window_of(bits: int) -> int:
    """Return how many neighbouring codes are taken from one shifted word.

    All lie in the upper 9 bits of a float32's mantissa: what stands for zero is at most 2^9.
    """
    return 9 // bits


def first_bit(bits: int) -> int:
    """Return where a unit begins in its first word: there its first window needs no shift."""
    return MANTISSA - bits * window_of(bits)


@functools.lru_cache(1024)
def geometry(bits: int, rows: int, columns: int, group_size: int) -> Geometry:
    """Return the longest runs and highest blocks that need next to no padding."""
    longest = RUN_COLUMNS // (VECTOR * fields_of(bits))
    shapes = [(VECTOR, run) for run in (8, 4, 2, 1) if run <= longest] + [(2, 1), (1, 1)]
    stack = STACK if -(-rows // 128) * 128 <= PADDING * (-(-rows // LANES) * LANES) else 1
    every = [Geometry(bits, rows, columns, group_size, *shape, stack) for shape in shapes]
    fewest = min(made.chunks for made in every)
    return next(made for made in every if made.chunks <= PADDING * fewest)


@dataclass(frozen=True)
class Sections:
    """Where the parts of a layout begin, in bytes: head, words, steps, and what outliers need.

    - `steps`: [block][group][lane][tile of the block], or one a column, or one.
    - `counts`: outliers of each row, int32 [stripe][tile][lane].
    - `starts`: the first slot of each tile and stripe, int32 [tile][stripe], and their number.
    - `entries`: a slot has one outlier of each lane, `value << 16 | column in its stripe`, at the
      place that `place_of` gives.
    """

    words: int
    steps: int
    counts: int
    starts: int
    entries: int
    size: int


def sections(made: Geometry, step_bytes: int, slots: int, has_outliers: bool) -> Sections:
    """Return where everything lies."""
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
    """Return where a slot has the outlier of a lane.

    Neighbours are apart, so that no compiler gives one lane several of them to load.
    """
    return lane * 5 % LANES
