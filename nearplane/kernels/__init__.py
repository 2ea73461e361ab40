"""Faster versions of functions that nearplane/lattice and nearplane/codes define.

Delete this folder and results stay the same up to rounding in the last bits; only speed changes.
A function that may have faster versions is an `Op` (nearplane/op.py): its body is the reference,
and each call goes to the first registered version that accepts its arguments. The versions here
speed up products with compressed weights, rANS decoding, and nearest-plane rounding. Of the rest
of the package, this folder imports only lattice, codes, types.py, op.py, precision.py and rows.py,
and only nearplane/__init__.py imports it.

Read nearplane/op.py and nearplane/codes/resident.py first, then cpu/versions.py; docs/KERNELS.md
and docs/GPU.md explain the memory layouts.

| file | what is in it |
|---|---|
| cpu/ | C++ kernels for x86 and portable C++, compiled when the package is installed |
| gpu/ | CUDA C++ kernels, compiled at run time, and Triton kernels |
| operators | a product as a torch operator, for torch.compile and autograd |
| coders | which encoder wrote a record, so that a layout can be turned back into the same bytes |

To add a kernel: decorate it with `@reference.version("name", accepts)`, where `reference` is an
`Op` and `accepts`, called with the same arguments, returns whether the kernel can serve them. Put
it in a file that the `__init__` of cpu/ or gpu/ imports. Tests compare it with the reference.
"""

from nearplane.kernels import cpu as cpu
from nearplane.kernels import gpu as gpu
