"""Pure mathematics of lattice rounding: tensors in, tensors out.

Rounding a row of a weight so that the layer's output changes least is a closest-vector problem.
Its lattice is spanned by the columns of the Cholesky factor R of the Hessian (RᵀR = H), scaled
by the quantization steps. GPTQ is a greedy algorithm for this problem: Babai's nearest plane on
the columns in reversed order [Chen26, Thm. 4].

Nothing here knows about models, layers, files or stored bytes. In: a weight (rows, columns), a
Hessian (columns, columns), steps, and code lengths where rounding is to be rate-aware. Out: int32
codes and bounds of their loss. `basis` raises NotPositiveDefiniteError for a Hessian that has no
Cholesky factor. This folder imports only nearplane/types.py, op.py and rows.py from the rest of the
package.

    basis = lattice.basis(hessian, "activation", damping=0.01)
    code = lattice.nearest_plane(weight[:, basis.columns], basis.factor, step)
    code = code[:, basis.columns.argsort()]  # back in the weight's own order of columns

Read nearest_plane.py first: `nearest_plane_plain` is the whole algorithm in ten lines.

| file | what is in it |
|---|---|
| damping | adding a multiple of the identity to a Hessian, so that it has a Cholesky factor |
| order | the order in which the columns are rounded (GPTQ's act-order and others) |
| factor | the Cholesky factor, in float64 and without an inverse |
| basis | order and factor of one Hessian together, with more damping where it is needed |
| nearest_plane | Babai's nearest plane: a readable version and a fast blocked one |
| outliers | nearest plane with clipped codes, which keeps what is clipped off |
| rate_aware | nearest plane that weighs squared error against code length, with its bound |
| search | the same as a beam search that keeps the K cheapest partial rows (M-algorithm) |
| two_sided | the same under a Hessian of the outputs, too: rows make up for each other |
| cross_target | the matrix to round towards, where quantized layers in front changed the inputs |
| gptq | GPTQ as its paper writes it, for tests that compare it with nearest plane |
| bound | the bound and the expected value of the loss, both known before rounding |
| reduce | LLL lattice reduction through fpylll: an experiment that no method uses |

To add an algorithm: write a file with one function, give it a plain version to compare with, and
import it below. A faster version for some processor belongs in nearplane/kernels (see op.py).
"""

from nearplane.lattice.basis import Basis, basis
from nearplane.lattice.bound import am_gm_bits, bound, expected_loss, relative_factor, squared_sides
from nearplane.lattice.damping import damp
from nearplane.lattice.factor import NotPositiveDefiniteError, factor
from nearplane.lattice.gptq import gptq
from nearplane.lattice.nearest_plane import (
    Levels,
    nearest_integer,
    nearest_plane,
    nearest_plane_among,
    nearest_plane_plain,
    sweep,
    unit_factor,
)
from nearplane.lattice.order import ORDERS, order
from nearplane.lattice.outliers import nearest_plane_with_outliers
from nearplane.lattice.rate_aware import Prices, cell_sides, rate_aware_plane
from nearplane.lattice.search import k_best
from nearplane.lattice.two_sided import RowBlock, moved_targets, round_two_sided

__all__ = [
    "ORDERS",
    "Basis",
    "Levels",
    "NotPositiveDefiniteError",
    "Prices",
    "RowBlock",
    "am_gm_bits",
    "basis",
    "bound",
    "cell_sides",
    "damp",
    "expected_loss",
    "factor",
    "gptq",
    "k_best",
    "moved_targets",
    "nearest_integer",
    "nearest_plane",
    "nearest_plane_among",
    "nearest_plane_plain",
    "nearest_plane_with_outliers",
    "order",
    "rate_aware_plane",
    "relative_factor",
    "round_two_sided",
    "squared_sides",
    "sweep",
    "unit_factor",
]
