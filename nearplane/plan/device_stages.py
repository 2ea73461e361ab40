"""The bytes that the layers of a stage take on an accelerator, while they are summed and rounded.

tests/device/test_fake_cuda.py counts what is held there, on models of real sizes.
"""

from dataclasses import dataclass

from nearplane.methods import Method
from nearplane.rows import AT_ONCE, PIECE, TILE

Shapes = tuple[tuple[int, int], ...]

# Bytes for every entry of a Hessian. Summing: the sum in float32, or the moments of two streams,
# see walk/input_statistics.py.
SUMMED, SUMMED_TWICE = 4, 20
# beside the moments: a factor in float64 while its copy in float32 is made
TARGET = 12
# the Hessian and its reordered copy in float32 and the sum that is factored; the Hessian and its
# factor with what is left of it in float32: itself in the steps and the unit factor
FACTORING, ROUNDING = 16, 20
# Bytes for every weight of the stage: original and integers; target; the lags of both parts.
WEIGHT, TARGET_WEIGHT, LAG_WEIGHT = 8, 4, 8
# of the weights that targets are made for: slopes on both parts; of one of them its correction, too
SLOPES, CORRECTION = 8, 8
OUTPUT_FACTOR = 16  # bytes of a number of the layer's output Hessian: its factor, scaled, too
SWEPT = 20  # bytes of a number that a sweep works on at a time: target, errors, sums and integers
CERTIFIED = 40  # of one whose certificate is computed: error, residual, sides and products
ERRORS_DRAWN = 12  # bytes of a weight that an error is drawn for: target, draws and their errors


@dataclass(frozen=True)
class DeviceStage:
    """The layers of a stage on an accelerator.

    - `shapes`: of its layers. `targets`: whether they are rounded towards targets.
    - `output_numbers`: of the largest output Hessian of one of them; 0 where there is none.
    """

    shapes: Shapes
    method: Method
    targets: bool
    output_numbers: int = 0

    @property
    def square(self) -> int:
        """The numbers of the Hessian."""
        return self.shapes[0][1] ** 2

    @property
    def weights(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)

    @property
    def largest(self) -> int:
        """The weights of the largest layer."""
        return max(rows * columns for rows, columns in self.shapes)

    @property
    def moments(self) -> int:
        """The bytes of what is summed over its inputs."""
        if not self.targets:
            return SUMMED * self.square
        lagged = LAG_WEIGHT * self.weights if len(self.shapes) == 1 else 0
        return SUMMED_TWICE * self.square + lagged

    @property
    def rounding(self) -> int:
        """The bytes of targets, factor or rounding, whichever takes most."""
        kept = WEIGHT * self.weights
        if self.targets:
            kept += TARGET_WEIGHT * self.weights
        at_once = self.weights if self.method.rounds_together else self.largest
        # integers of the sweep before this one, and of the rows that are done
        swept = 8 * at_once + SWEPT * min(self.largest, AT_ONCE)
        certified = CERTIFIED * min(self.largest, PIECE * TILE * self.shapes[0][1])
        rounded = ROUNDING * self.square + kept + OUTPUT_FACTOR * self.output_numbers
        rounded += max(self.method.rounding_bytes * at_once, swept, certified)
        return max(FACTORING * self.square + kept, rounded, self.target_bytes)

    @property
    def target_bytes(self) -> int:
        """The bytes while targets are made; 0 where there are none."""
        if not self.targets:
            return 0
        weights = (WEIGHT + SLOPES) * self.weights + CORRECTION * self.largest
        return self.moments + TARGET * self.square + weights

    @property
    def drawing(self) -> int:
        """The bytes of an error that is drawn for the largest of the layers."""
        return ROUNDING * self.square + ERRORS_DRAWN * self.largest
