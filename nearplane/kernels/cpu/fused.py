"""A decoder block for one token in two calls of the library (src/fused.h)."""

import ctypes
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nearplane.codes import fused
from nearplane.codes.fused import GELU_TANH, SILU, Block, Linear, Norm
from nearplane.kernels.cpu.layout import FORM, ensure_checked
from nearplane.kernels.cpu.library import TYPES, kernels
from nearplane.kernels.operators import check_shape

_u32, _ptr, _float = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_float
NORMS = "before_attention of_queries of_keys after_attention before_mlp after_mlp".split()
LINEARS = "queries keys values output gate up down".split()
GATES = {SILU: 0, GELU_TANH: 1}


class CNorm(ctypes.Structure):
    """`Norm` of src/fused.h."""

    _fields_ = [("weight", _ptr), ("eps", _float), ("offset", _float)]


class CLinear(ctypes.Structure):
    """`Linear` of src/fused.h."""

    _fields_ = [("layout", _ptr), ("bias", _ptr)]


class CBlock(ctypes.Structure):
    """`DecoderBlock` of src/fused.h."""

    _fields_ = [
        *((name, _u32) for name in ("type", "hidden", "heads", "kv_heads", "head_size")),
        *((name, _u32) for name in ("rotated", "feed_forward", "gate_kind")),
        *((name, CNorm) for name in NORMS),
        *((name, CLinear) for name in LINEARS),
    ]


@dataclass(frozen=True)
class Prepared:
    """What the library is given of a block."""

    dtype: torch.dtype
    hidden: int
    heads: int
    kv_heads: int
    given: CBlock
    address: Any


_prepared: "WeakKeyDictionary[Block, Prepared]" = WeakKeyDictionary()


def prepared(block: Block, dtype: torch.dtype, rotated: int | None = None) -> Prepared:
    """Return what the library is given of a block; ValueError where its parts do not fit.

    - `rotated`: columns of a head that are rotated; None where that does not matter.
    """
    found = _prepared.get(block)
    if found is None or found.dtype != dtype or rotated not in (None, found.given.rotated):
        found = _prepared[block] = _prepare(block, dtype, rotated or 0)
    return found


def _prepare(block: Block, dtype: torch.dtype, rotated: int) -> Prepared:
    hidden, size = block.queries.columns, block.head_size
    heads, kv_heads = block.queries.rows // size, block.keys.rows // size
    shapes = [(heads * size, hidden), (kv_heads * size, hidden), (kv_heads * size, hidden)]
    shapes += [(hidden, heads * size), *[(block.gate.rows, hidden)] * 2, (hidden, block.gate.rows)]
    for linear, shape in zip(block.linears, shapes, strict=True):
        check_shape(ensure_checked(linear.laid), *shape)
        _check(linear.bias, shape[0], dtype)
    widths = {"of_queries": size, "of_keys": size}
    for name in NORMS:
        _check(getattr(block, name).weight, widths.get(name, hidden), dtype)
    if rotated % 2 or rotated > size:
        raise ValueError(f"{rotated} of the {size} columns of a head cannot be rotated")
    given = CBlock(TYPES[dtype], hidden, heads, kv_heads, size, rotated, block.gate.rows)
    given.gate_kind = GATES[block.gate_kind]
    for name in NORMS:
        setattr(given, name, _norm(getattr(block, name)))
    for name in LINEARS:
        setattr(given, name, _linear(getattr(block, name)))
    return Prepared(dtype, hidden, heads, kv_heads, given, ctypes.addressof(given))


def _check(vector: Tensor | None, length: int, dtype: torch.dtype) -> None:
    if vector is None:
        return
    if vector.dtype != dtype or vector.shape != (length,) or not vector.is_contiguous():
        raise ValueError(f"a vector of {list(vector.shape)} in {vector.dtype}, not {length}")


def _norm(norm: Norm) -> CNorm:
    return CNorm(None if norm.weight is None else norm.weight.data_ptr(), norm.eps, norm.offset)


def _linear(linear: Linear) -> CLinear:
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return CLinear(linear.laid.data_ptr(), bias)


def _serves(block: Block, x: Tensor, *_: Any) -> bool:
    return block.forms == {FORM} and x.dtype in TYPES and x.device.type == "cpu"


@fused.attention_inputs.version("cpu", _serves)
def _attention_inputs(block: Block, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    made = prepared(block, x.dtype, cosine.shape[-1])
    x, cosine, sine = (_as(tensor, x.dtype) for tensor in (x, cosine, sine))
    check_vector(x, made.hidden)
    size = made.given.head_size
    queries = x.new_empty((1, made.heads, 1, size))
    keys, values = (x.new_empty((1, made.kv_heads, 1, size)) for _ in range(2))
    pointers = (tensor.data_ptr() for tensor in (x, cosine, sine, queries, keys, values))
    kernels().np_attention_inputs(made.address, *pointers, torch.get_num_threads())
    return queries, keys, values


@fused.after_attention.version("cpu", _serves)
def _after_attention(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    made = prepared(block, x.dtype)
    # (1, heads, 1, size) and (1, 1, heads · size) are the same numbers in the same order
    x, attended = _as(x, x.dtype), _as(attended, x.dtype)
    check_vector(x, made.hidden)
    check_vector(attended, made.heads * made.given.head_size)
    y = torch.empty_like(x)
    pointers = (tensor.data_ptr() for tensor in (x, attended, y))
    kernels().np_after_attention(made.address, *pointers, torch.get_num_threads())
    return y


def check_vector(tensor: Tensor, length: int) -> None:
    """Raise ValueError unless a tensor has as many elements as the library reads."""
    if tensor.numel() != length:
        raise ValueError(f"{tensor.numel()} activations of one token, not {length}")


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    fits = tensor.dtype is dtype and tensor.is_contiguous()
    return tensor if fits else tensor.to(dtype).contiguous()
