"""The block types of GGUF files: which integers, steps and minima each of them holds.

value = step · level, where a level is an integer of the type's; or, of types with minima,
value = step · integer − minimum, with integers from 0 up. Steps and minima of simple types are
numbers of float16. Types of 256 columns have one such number for the steps of 8 or 16 groups, which
are multiples of it, and one for their minima.
"""

from dataclasses import dataclass

# of IQ4_NL and IQ4_XS: close together near zero
UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
LARGEST = 4094.0  # a step whose multiple by 16, the minimum of a block, float16 still holds


@dataclass(frozen=True)
class BlockGrid:
    """What a block type can hold exactly.

    - `low`, `high`: the levels, all integers between them; or `levels`, where those are uneven.
    - `group`: columns with one step. `block`: columns whose steps have one factor in float16.
    - `multiples`: steps are 1 to so many times that factor; 0 where it is the step itself.
    - `signed`: whether each step may be negative, so that the longer side is where it is needed.
    - `bits`: of a weight in the file, steps included.
    - `minima`: whether every group has a minimum: 0 to `multiples` times a factor of the block's,
      or any number of float16. `low` .. `high` are then the levels whose minimum is −low · step.
    """

    name: str
    low: int
    high: int
    group: int
    block: int
    bits: float
    multiples: int = 0
    signed: bool = True
    levels: tuple[int, ...] = ()
    minima: bool = False

    @property
    def highest(self) -> int:
        """The largest integer beside a minimum; the smallest is 0."""
        return self.high - self.low

    def fits(self, columns: int) -> bool:
        """Whether the type's blocks divide a row."""
        return columns % self.block == 0


GRIDS = {
    grid.name: grid
    for grid in (
        BlockGrid("Q2_K", -2, 1, 16, 256, 2.625, 15, signed=False, minima=True),
        BlockGrid("Q3_K", -4, 3, 16, 256, 3.4375, 31),
        BlockGrid("IQ4_XS", -127, 113, 32, 256, 4.25, 31, levels=UNEVEN),
        BlockGrid("Q4_K", -8, 7, 32, 256, 4.5, 63, signed=False, minima=True),
        BlockGrid("IQ4_NL", -127, 113, 32, 32, 4.5, levels=UNEVEN),
        BlockGrid("Q4_0", -8, 7, 32, 32, 4.5),
        BlockGrid("Q4_1", 0, 15, 32, 32, 5.0, minima=True),
        BlockGrid("Q5_K", -16, 15, 32, 256, 5.5, 63, signed=False, minima=True),
        BlockGrid("Q5_0", -16, 15, 32, 32, 5.5),
        BlockGrid("Q5_1", 0, 31, 32, 32, 6.0, minima=True),
        BlockGrid("Q6_K", -32, 31, 16, 256, 6.5625, 127),
        BlockGrid("Q8_0", -128, 127, 32, 32, 8.5),
    )
}
# what llama.cpp takes where 256 does not divide a row
INSTEAD = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL"}
INSTEAD |= {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# by their bits; of types with the same, the one that errs least comes first
MIXED = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "IQ4_NL", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0")


def grid_of(name: str, columns: int) -> BlockGrid:
    """Return a type, or what takes its place in rows of so many columns."""
    grid = GRIDS[name]
    return grid if grid.fits(columns) or name not in INSTEAD else GRIDS[INSTEAD[name]]
