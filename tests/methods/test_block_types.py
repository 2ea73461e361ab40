"""Block types: steps that files hold, levels that are nearest, and errors of the expected size."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes.block_types import GRIDS, grid_of
from nearplane.export.gguf.blocks import BLOCK_TYPES
from nearplane.methods import GGUF, GPTQ
from nearplane.methods.block_steps import block_steps, effective_bits, levels_of, mixed_grids
from nearplane.types import spread, value
from tests.problem import problem

every_type = pytest.mark.parametrize("name", GRIDS)
STORED = {block.grid.name: block for block in BLOCK_TYPES}


@every_type
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-2, 1.0, 300.0]))
def test_files_hold_every_layer(name, seed, size):
    """Steps have a factor of float16 a block, and integers are levels, whatever the weight."""
    draws = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(3, 512, generator=draws).exp2() * torch.randn(3, 512)
    grid = GRIDS[name]
    step, minimum = block_steps(grid, weight, torch.rand(512, generator=draws) + 0.1)
    assert step.shape == (3, 512 // grid.group) and (minimum is not None) == grid.minima
    raised = weight if minimum is None else weight + spread(minimum, grid.group, 512)
    code = levels_of(grid, weight).nearest(raised / spread(step, grid.group, 512)).int()
    assert STORED[name].holds(code.numpy(), grid.minima)
    packed = STORED[name].packed(code.numpy(), step.numpy(), *found_minima(minimum))
    assert packed.shape == (3, int(512 * grid.bits / 8))
    decoded = gguf.dequantize(packed, STORED[name].ggml)
    assert np.array_equal(decoded, value(code, step, grid.group, None, None, minimum).numpy())


def found_minima(minimum):
    return [] if minimum is None else [minimum.numpy()]


@every_type
def test_the_nearest_level_is_the_nearest(name):
    grid = GRIDS[name]
    low, high = (0, grid.highest) if grid.minima else (grid.low, grid.high)
    levels = torch.tensor(grid.levels or range(low, high + 1)).float()
    x = torch.linspace(low - 3, high + 3, 997)
    found = levels_of(grid, x).nearest(x.clone())
    assert torch.equal((found - x).abs(), (levels - x[:, None]).abs().amin(1))


@every_type
def test_a_type_errs_as_entropy_coded_integers_of_its_effective_bits(name):
    """Of 6.02 dB a bit: measured once more, on another matrix, to a tenth of a bit."""
    grid = GRIDS[name]
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    parts = block_steps(grid, weight, torch.ones(512))
    wide, less = (0.0 if part is None else spread(part, grid.group, 512) for part in parts)
    level = levels_of(grid, weight).nearest((weight + less) / wide)
    error = float((level * wide - less - weight).square().mean())
    bits = np.log(np.pi * np.e / 6 / error) / np.log(4)
    assert abs(bits - effective_bits(grid)) < 0.1 and effective_bits(grid) < grid.bits


def test_mixtures_hold_what_divides_a_row():
    assert [grid.name for grid in mixed_grids(96)] == ["IQ4_NL", "Q5_0", "Q5_1", "Q8_0"]
    assert {grid.block for grid in mixed_grids(512)} == {32, 256}
    assert grid_of("Q4_K", 96).name == "Q5_0" and grid_of("Q4_K", 512).name == "Q4_K"
    for columns in (32, 256):
        grids = mixed_grids(columns)
        assert sorted(grids, key=lambda g: g.bits) == grids
        assert sorted(grids, key=lambda g: effective_bits(g)) == grids


@pytest.mark.parametrize("bits, name", [(4, "Q4_0"), (5, "Q5_0")])
def test_simple_types_are_no_worse_than_gptq_with_the_same_groups(bits, name):
    p = problem(5, 48, 128, dtype=torch.float32)
    ours = GGUF(type=name, damping=0.01)(p.weight, p.hessian).loss.sum()
    assert ours < 1.02 * GPTQ(bits=bits, group_size=32)(p.weight, p.hessian).loss.sum()


def test_a_mixture_takes_the_largest_type_that_its_rate_allows():
    sizes = {2.0: "Q2_K", 3.0: "Q2_K", 3.5: "Q3_K", 4.3: "IQ4_XS", 7.0: "Q6_K", 16.0: "Q8_0"}
    for bits, name in sizes.items():
        assert GGUF(mixed=bits).grid(512).name == name
