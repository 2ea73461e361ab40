"""GPTQModel loads exported files, multiplies by the same weights and computes the same.

`make test-exports` installs it in an environment of its own, and names that in GPTQMODEL_PYTHON.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nearplane as npl
from nearplane.export.formats import export
from nearplane.methods import GPTQ, HPTQ, RTN
from nearplane.pipeline import quantize
from tests.export.test_gguf import TOKENS, model_of
from tests.export.test_packed_formats import KEEP

PYTHON = os.environ.get("GPTQMODEL_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="make test-exports runs this")
# products in float16, whose numbers have 11 bits: off by 2^-11 each, over two blocks
FAR = 0.003


@pytest.mark.parametrize(
    ("family", "method", "version"),
    [
        ("llama", GPTQ(bits=4, group_size=32), "gptq"),
        ("qwen2", GPTQ(bits=3, group_size=32), "gptq_v2"),
        ("mistral", RTN(bits=8, group_size=32), "gptq"),
        ("llama", HPTQ(bpw=3.0), "gptq"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_gptqmodel_computes_the_same(family, method, version, tmp_path):
    model_of(family, tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", method, TOKENS, rules=KEEP)
    out = export(tmp_path / "out", tmp_path / "packed", version)
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    words = [Path(__file__).with_name("worker.py"), out, tmp_path / "tokens.npy"]
    command = [PYTHON, *map(str, words), str(tmp_path / "answers.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "answers.safetensors")
    model = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32)
    with torch.no_grad():
        logits, expected = found.pop("logits").float(), model(TOKENS).logits
    assert len(found) == 15  # seven layers of each block, and the head
    for name, weight in found.items():
        assert weight.equal(model.state_dict()[name].half()), name
    off = float((logits - expected).norm() / expected.norm())
    assert off < FAR, off
