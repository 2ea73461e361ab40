"""One file per published method: (weight, hessian) -> QuantizedWeight.

The import lines are the table of contents; a class that is imported here is on the command line,
in the report and in the contract tests.
"""

from nearplane.methods.eclq import ECLQ
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
