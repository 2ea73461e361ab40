"""Pure mathematics on matrices: tensors in, tensors out.

| file | idea |
|---|---|
| damping | the multiple of the identity that makes a Hessian a basis |
| order | which column is rounded first |
| factor | one float64 Cholesky, no inverse |
| basis | order and factor together, with damping that grows when it must |
| nearest_plane | Babai's algorithm, plain and blocked |
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
from nearplane.lattice.threads import one_thread

__all__ = [
    "ORDERS",
    "Basis",
    "NotPositiveDefiniteError",
    "am_gm_bits",
    "basis",
    "bound",
    "damp",
    "expected_loss",
    "factor",
    "gptq",
    "nearest_integer",
    "nearest_plane",
    "nearest_plane_plain",
    "one_thread",
    "order",
    "relative_factor",
    "squared_sides",
    "sweep",
]
