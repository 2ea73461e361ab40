"""Quantization methods, one file each: a weight and a Hessian in, a QuantizedWeight out.

    result = ECLQ(bpw=3.125)(weight, hessian)

In: a finite weight (out_features, in_features), and the mean of x xᵀ over calibration tokens. Out:
a `QuantizedWeight` with integer codes, steps, the stored record, the loss of every row, and a bound
of that loss or the reason why there is none. What cannot be done raises NearplaneError. Nothing
here knows about models or files; this folder imports lattice/, codes/, types.py, op.py and rows.py.

| class | rounding | stored as |
|---|---|---|
| ECLQ | rate-aware nearest plane, the default | rANS, at `bpw` bits per weight |
| HPTQ | nearest plane, one step for the matrix | Huffman, at `bpw` bits per weight |
| WaterSIC | nearest plane, one step per column | Huffman, at `bpw` bits per weight |
| HRTN | to nearest | Huffman, at `bpw` bits per weight |
| SSQR | nearest plane, clipped | `bits` each and sparse outliers, steps by group |
| GPTQ | nearest plane, clipped | `bits` each, steps by group |
| GGUF | nearest plane onto the levels of a block type | integers and steps that a GGUF file holds |
| RTN | to nearest, clipped | `bits` each, steps by group |

Read method.py first, then rtn.py, the simplest method.

| file | what is in it |
|---|---|
| method | the base class `Method`, the table METHODS, and names and options as JSON |
| eclq, hptq, watersic, hrtn, ssqr, gptq, gguf, rtn | one method each |
| steps | the step of least error for every group of columns |
| block_steps | steps and levels of the block types of GGUF files |
| fixed_width | shared by RTN, GPTQ and SSQR: packing and the result |
| entropy_coded | shared by HPTQ, HRTN and WaterSIC: rate limits and the result |
| rate | the rate of Huffman-coded integers, and a prediction of the step that meets a rate |
| scale_search | the search for the step at which Huffman-coded integers meet a rate |
| meet_rate | the same for ECLQ, whose rounding depends on the code lengths |
| certificate | the measured loss of every row, and its bound |
| allocation | the rates of all layers, from their sensitivities and one average rate |

To add a method: write one file with a frozen dataclass that derives from `Method` and defines
`stored_bytes` and `quantize`, and add one import line below. The command line, `plan`, the report
and tests/contracts/test_methods.py then include it.
"""

from nearplane.methods.eclq import ECLQ
from nearplane.methods.gguf import GGUF
from nearplane.methods.gptq import GPTQ
from nearplane.methods.hptq import HPTQ
from nearplane.methods.hrtn import HRTN
from nearplane.methods.method import METHODS, Method, OutOfRangeError, Target, from_recipe
from nearplane.methods.rate import RateError
from nearplane.methods.rtn import RTN
from nearplane.methods.ssqr import SSQR
from nearplane.methods.watersic import WaterSIC

__all__ = [
    "ECLQ",
    "GGUF",
    "GPTQ",
    "HPTQ",
    "HRTN",
    "METHODS",
    "RTN",
    "SSQR",
    "Target",
    "Method",
    "OutOfRangeError",
    "RateError",
    "WaterSIC",
    "from_recipe",
]
