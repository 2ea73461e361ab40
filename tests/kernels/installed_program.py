"""What an installed wheel must do, in an environment of its own: `make wheels` runs this file.

The argument is the folder that nearplane must have been installed into.
"""

import sys
from pathlib import Path

import torch

import nearplane as npl
from nearplane import codes
from nearplane.codes import resident
from nearplane.kernels import cpu

here = Path(npl.__file__).parents[1]
assert here == Path(sys.argv[1]), f"nearplane comes from {here}"
assert cpu.available(), "the wheel has no kernels"

torch.manual_seed(0)
inputs = torch.randn(512, 96)
w = npl.HPTQ(bpw=4)(torch.randn(64, 96), inputs.T @ inputs / 512)
expected = inputs[:3].double() @ w.value().double().T
for name in cpu.available():
    cpu.choose(name)
    for form in ("compact", "fast"):
        with resident.wanting(form):
            kind, laid = resident.lay_out(w.record, 64, 96)
        assert kind == "cpu", kind
        product = resident.product(inputs[:3], laid, kind, 64)
        off = (product - expected).norm() / expected.norm()
        assert off < 1e-3, (name, form, off)
assert torch.equal(codes.unpack(w.record).code, w.code)
print(f"nearplane {npl.__version__} in {here}: products by {', '.join(cpu.available())}")
