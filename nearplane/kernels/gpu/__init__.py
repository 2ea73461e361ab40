"""Kernels for GPUs: CUDA C++ compiled at run time, and Triton.

In: a record (the stored bytes of a weight), on the GPU. Out: a layout, the same weight arranged for
these kernels, and products with it; also nearest-plane codes. A record that no kernel here accepts
is decoded at every use.

Read versions.py first, then header.py and one folder's layout.py; docs/GPU.md explains the layouts.

| file | what is in it |
|---|---|
| versions | registers these kernels for the functions of nearplane/codes/resident.py |
| header | the first 256 bytes of a layout |
| nearest_plane, k_best | rounding on the lattice, 32 columns a launch |
| cuda/layout, cuda/sections | record <-> layout, and where the parts of a layout lie |
| cuda/lanes, cuda/tables, cuda/contexts | entropy-coded integers and their code tables |
| cuda/planes, cuda/sparse | codes of fixed width, and sparse entries (outliers) |
| cuda/linear, cuda/launches | the product, and how it is spread over a GPU |
| cuda/programs, cuda/nvrtc, cuda/driver | sources, their compilation, and starting kernels |
| cuda/src/ | the CUDA C++ sources |
| portable/layout, portable/geometry | record <-> layout, and where its codes lie |
| portable/few, portable/many, portable/decoding | the Triton kernels of products |
| portable/leaf, portable/beam | the Triton kernels of rounding |
| portable/linear, portable/plan, portable/start | the product, and how its kernels are started |

To add a kernel: register it like those of versions.py, in a file that is imported below. Import
Triton and CUDA inside functions, so that machines without a GPU can import this package.
"""

from nearplane.kernels.gpu import k_best as k_best
from nearplane.kernels.gpu import nearest_plane as nearest_plane
from nearplane.kernels.gpu import versions as versions
