"""Pure mathematics on matrices: tensors in, tensors out.

| file | idea |
|---|---|
| damping | the multiple of the identity that makes a Hessian a basis |
| order | which column is rounded first |
| factor | one float64 Cholesky, no inverse |
| basis | order and factor together, with damping that grows when it must |
| nearest_plane | Babai's algorithm, plain and blocked |
| rate_aware | nearest plane that weighs error against code length, and the cells that bound it |
| search | the same with K partial rows kept: the M-algorithm |
| cross_target | what a weight should become when its inputs have drifted |
| gptq | Algorithm 1 as the paper writes it, the oracle of the equivalence |
| bound | what is known of the error before rounding |
| threads | keeping short operations on one thread |
| reduce | LLL through fpylll, a study |
"""

from nearplane.lattice.basis import Basis, basis
from nearplane.lattice.bound import am_gm_bits, bound, expected_loss, relative_factor, squared_sides
from nearplane.lattice.damping import damp
from nearplane.lattice.factor import NotPositiveDefiniteError, factor
from nearplane.lattice.gptq import gptq
from nearplane.lattice.nearest_plane import (
    nearest_integer,
    nearest_plane,
    nearest_plane_plain,
    sweep,
)
from nearplane.lattice.order import ORDERS, order
from nearplane.lattice.rate_aware import Prices, cell_sides, rate_aware_plane
from nearplane.lattice.search import k_best
from nearplane.lattice.threads import one_thread

__all__ = [
    "ORDERS",
    "Basis",
    "NotPositiveDefiniteError",
    "Prices",
    "am_gm_bits",
    "basis",
    "bound",
    "cell_sides",
    "damp",
    "expected_loss",
    "factor",
    "gptq",
    "k_best",
    "nearest_integer",
    "nearest_plane",
    "nearest_plane_plain",
    "one_thread",
    "order",
    "rate_aware_plane",
    "relative_factor",
    "squared_sides",
    "sweep",
]
