"""Starting Triton kernels, and compiling them without a GPU."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMES = (
    "product_few",
    "product_many",
    "product_any",
    "combine",
    "decode",
    "decode_outliers",
    "leaf",
    "search",
)
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """The parameters of a kernel launch, without its tensors.

    - `numbers`, `constants`: arguments by name; constants are known at compile time.
    - `splits`: parts of the columns, whose partial results must then be added.
    - `fuses`: whether the compiler may fuse a multiplication and an addition.
    - `registers`: most registers of a thread, on NVIDIA GPUs; None: the compiler decides.
    """

    kernel: str
    grid: tuple[int, ...]
    numbers: dict[str, int]
    constants: dict[str, int | bool]
    splits: int = 1
    warps: int = 4
    fuses: bool = True
    registers: int | None = None

    def options(self, is_nvidia: bool) -> dict[str, Any]:
        """Return the options for Triton's compiler; pipelining loads (num_stages) gains nothing."""
        chosen = {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": self.fuses}
        return chosen | ({"maxnreg": self.registers} if is_nvidia and self.registers else {})


def start(launch: Launch, **tensors: Tensor | None) -> None:
    """Start a kernel on the GPU of its tensors, in the current stream."""
    options = launch.options(torch.version.hip is None)
    # Triton launches on the current GPU, which may be another one
    with torch.cuda.device_of(next(iter(tensors.values()))):
        kernels()[launch.kernel][launch.grid](
            **tensors, **launch.numbers, **launch.constants, **options
        )


@functools.cache
def kernels() -> dict[str, Any]:
    """Return the kernels by name. Triton is imported here, at the first use."""
    from nearplane.kernels.gpu.portable import beam, decoding, few, leaf, many

    found = vars(beam) | vars(decoding) | vars(few) | vars(leaf) | vars(many)
    return {name: found[name] for name in NAMES}


def compiled(launch: Launch, gpu: Any, **types: torch.dtype | None) -> Any:
    """Compile a kernel for a GPUTarget of Triton, with the specialisations of a real launch.

    - `types`: the type of each tensor, None for an absent one. Tensors are taken to be aligned to
      16 bytes.
    """
    import triton
    from triton.compiler import ASTSource

    kernel = kernels()[launch.kernel]
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        dtype, number = types.get(name), launch.numbers.get(name)
        any_number = kernel.params[place].do_not_specialize
        if dtype is not None:
            signature[name] = POINTERS[dtype]
        elif name in launch.constants or number is None or number == 1 and not any_number:
            signature[name] = "constexpr"
            constants[name] = launch.constants.get(name, number)
        else:
            signature[name] = "i32" if number < 2**31 else "i64"
        if signature[name] != "constexpr" and not any_number and (number or 0) % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = launch.options(gpu.backend == "cuda")
    return triton.compile(source, target=gpu, options=options)
