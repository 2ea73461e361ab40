"""The operator that multiplies by several records; needs no vLLM."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nearplane.codes import resident
from nearplane.export.vllm.product import fused_linear
from tests.vllm.parts import Parts, parts

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def three() -> Parts:
    return parts([32, 16, 16], 40)


@pytest.mark.parametrize("batch", [(1,), (7,), (2, 3), (0,), (200,)])
@pytest.mark.parametrize("biased", [False, True])
def test_outputs_of_the_parts_follow_each_other(three, batch, biased):
    x = torch.randn(*batch, 40, generator=torch.manual_seed(1))
    bias = torch.randn(64, generator=torch.manual_seed(2)) if biased else None
    y = fused_linear(x, three.laid, three.forms, three.rows, bias)
    alone = [resident.product(x, *p) for p in zip(three.laid, three.forms, three.rows, strict=True)]
    assert y.shape == (*batch, 64)
    if not biased:
        assert torch.equal(y, torch.cat(alone, -1))
    torch.testing.assert_close(y, F.linear(x, three.value, bias), rtol=1e-5, atol=1e-5)


def test_the_operator_is_the_function(three):
    x, bias = torch.randn(5, 40), torch.randn(64)
    given = x, three.laid, three.forms, three.rows, bias
    assert torch.equal(torch.ops.nearplane.fused_linear(*given), fused_linear(*given))
    torch.library.opcheck(
        torch.ops.nearplane.fused_linear, given, test_utils=("test_schema", "test_faketensor")
    )


def test_types_of_activations_are_kept(three):
    for dtype in (torch.bfloat16, torch.float16):
        y = fused_linear(torch.randn(3, 40).to(dtype), three.laid, three.forms, three.rows)
        assert y.dtype == dtype


def test_torch_compile_takes_it_whole():
    """In a process of its own: checks of shapes, which tests have, are in the way of tracing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.compiled"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
