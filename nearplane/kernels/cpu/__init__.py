"""Products with compressed weights on a CPU, in C++ for what the processor has.

- `available()`: instruction sets that have kernels here; `chosen()`: the one that runs.
- `choose(name)`: run another one, so that each can be tested and timed.
"""

import warnings

from nearplane.kernels.cpu.library import available, choose, chosen, library

__all__ = ["available", "choose", "chosen"]

if library() is None:
    warnings.warn(
        "nearplane was installed without a C++ compiler: compressed layers run on the slower "
        "torch reference (install g++ and run `pip install --force-reinstall nearplane`)",
        stacklevel=2,
    )
else:
    from nearplane.kernels.cpu import nearest_plane as nearest_plane
    from nearplane.kernels.cpu import versions as versions
