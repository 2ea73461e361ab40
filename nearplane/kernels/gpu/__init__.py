"""Products with compressed weights on a GPU, in CUDA C++ compiled at run time, and in Triton."""

from nearplane.kernels.gpu import nearest_plane as nearest_plane
from nearplane.kernels.gpu import versions as versions
