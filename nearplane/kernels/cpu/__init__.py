"""Kernels for CPUs in C++, for the best instruction set that the processor has.

In: a record (the stored bytes of a weight), on the CPU. Out: a layout, the same weight arranged for
these kernels, and products with it; also decoded rANS streams and nearest-plane codes.

- `available()`: the instruction sets that this processor can run kernels of.
- `chosen()`: the one in use; `choose(name)`: use another one, to test or time it.

Read versions.py first, then layout.py and the comments of src/layout.h; docs/KERNELS.md explains
the layout.

| file | what is in it |
|---|---|
| versions | registers these kernels for the functions of nearplane/codes |
| layout | record <-> layout, and the check of a layout before it is used |
| linear | the product x · weightᵀ + bias with a layout |
| fused | a decoder block for one token |
| streams | decoding of rANS streams |
| nearest_plane | nearest-plane rounding, 32 columns a call |
| library, find | loading the shared library, and the signatures of its functions |
| src/ | the C++ sources; src/kernels.h lists what an instruction set implements |

To add an instruction set: write src/NAME.cpp, which fills a table `Kernels` of src/kernels.h, and
add an entry to src/instruction_sets.h: name, compiler flags, the condition on the processor.
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
    from nearplane.kernels.cpu import fused as fused
    from nearplane.kernels.cpu import nearest_plane as nearest_plane
    from nearplane.kernels.cpu import versions as versions
