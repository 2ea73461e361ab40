"""A decoder block for one token in the library, against the functions it stands for."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import codes
from nearplane.codes import fused, resident
from nearplane.codes.fused import GELU_TANH, SILU, Block, Linear, Norm

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# of an activation that falls on the other side of a half when it becomes an integer of 15 bits
INTEGER = 1 / 16256


def linear(rows: int, columns: int, form: str, dtype: torch.dtype, biased: bool = True) -> Linear:
    code = torch.randint(-4, 5, (rows, columns), dtype=torch.int32)
    step = codes.round_step(torch.full((1, 1), 0.3 / math.sqrt(columns)))
    record, _ = codes.pack(code, step, columns, None, codes.Huffman())
    with resident.wanting(form):
        name, laid = resident.lay_out(record, rows, columns)
    assert name == "cpu"
    return Linear(laid, name, rows, columns, torch.randn(rows).to(dtype) if biased else None)


def block(
    form: str, dtype: torch.dtype, hidden: int, heads: int, kv_heads: int, size: int, feed: int
) -> Block:
    def norm(width: int) -> Norm:
        return Norm(torch.randn(width).to(dtype), 1e-5, 1.0)

    def made(rows: int, columns: int) -> Linear:
        return linear(rows, columns, form, dtype)

    return Block(
        head_size=size,
        gate_kind=SILU,
        queries=made(heads * size, hidden),
        keys=made(kv_heads * size, hidden),
        values=made(kv_heads * size, hidden),
        output=made(hidden, heads * size),
        gate=made(feed, hidden),
        up=made(feed, hidden),
        down=made(hidden, feed),
        before_attention=norm(hidden),
        of_queries=norm(size),
        of_keys=norm(size),
        after_attention=norm(hidden),
        before_mlp=norm(hidden),
        after_mlp=norm(hidden),
    )


def inputs(made: Block, dtype: torch.dtype, rotated: int) -> list[torch.Tensor]:
    hidden, heads = made.queries.columns, made.queries.rows // made.head_size
    angle = torch.rand(1, 1, rotated // 2).repeat(1, 1, 2) * 6
    shapes = [(1, 1, hidden), (1, heads, 1, made.head_size)]
    x, attended = (torch.randn(shape).to(dtype) for shape in shapes)
    return [x, angle.cos().to(dtype), angle.sin().to(dtype), attended]


def assert_same(made: Block, given: list[torch.Tensor], limit: float) -> None:
    x, cosine, sine, attended = given
    found = [*fused.attention_inputs(made, x, cosine, sine)]
    found.append(fused.after_attention(made, x, attended))
    expected = [*fused.attention_inputs.reference(made, x, cosine, sine)]
    expected.append(fused.after_attention.reference(made, x, attended))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert float((ours.float() - theirs.float()).norm()) <= limit * float(theirs.float().norm())


def limit_of(form: str, dtype: torch.dtype) -> float:
    """Some ten roundings one after the other in each way, which a gate may double twice."""
    return 80 * UNIT[dtype] + 8 * INTEGER * (form == "fast")


@pytest.mark.parametrize("form", ["compact", "fast"])
@pytest.mark.parametrize("dtype", UNIT)
def test_blocks_are_what_their_parts_say(form, dtype, isa):
    torch.manual_seed(0)
    made = block(form, dtype, 192, 6, 2, 32, 320)
    assert_same(made, inputs(made, dtype, 32), limit_of(form, dtype))
    other = dataclasses.replace(made, gate_kind=GELU_TANH, of_keys=Norm(), after_mlp=Norm())
    assert_same(other, inputs(other, dtype, 16), limit_of(form, dtype))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([2, 6, 16, 34]),
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 3),
)
def test_odd_shapes(kv_heads, times, size, hidden, feed, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(feed)
    made = block("compact", torch.float32, hidden, kv_heads * times, kv_heads, size, feed)
    given = inputs(made, torch.float32, size // 4 * 2)
    assert_same(made, given, limit_of("compact", torch.float32))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-120, 120, width=32), st.sampled_from([SILU, GELU_TANH]))
def test_gates_of_any_size(value, kind):
    """e^x is within 2e-7 of itself; at -120 the gate is 0, not NaN."""
    hidden = 16
    made = block("compact", torch.float32, hidden, 1, 1, 16, 32)
    plain = {"after_attention": Norm(), "before_mlp": Norm(), "after_mlp": Norm()}
    bias = torch.full((32,), value)
    gate = dataclasses.replace(made.gate, bias=bias)
    made = dataclasses.replace(made, gate=gate, gate_kind=kind, **plain)
    assert_same(made, inputs(made, torch.float32, 16), 1e-5)


@pytest.mark.parametrize("name", ["queries", "values", "output", "up", "down"])
def test_parts_that_do_not_fit_are_refused(name):
    made = block("compact", torch.float32, 32, 2, 1, 16, 48)
    wrong = linear(33, 31, "compact", torch.float32, biased=False)
    given = inputs(made, torch.float32, 16)
    bad = dataclasses.replace(made, **{name: wrong})
    with pytest.raises((ValueError, RuntimeError)):
        fused.attention_inputs(bad, *given[:3])
    with pytest.raises(ValueError):
        fused.attention_inputs(made, given[0][..., :8].contiguous(), *given[1:3])
    short = dataclasses.replace(made, before_mlp=Norm(torch.ones(31)))
    with pytest.raises(ValueError):
        fused.after_attention(short, given[0], given[3])
