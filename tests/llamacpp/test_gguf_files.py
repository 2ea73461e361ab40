"""Stock llama.cpp loads exported files, cuts text into the same tokens and computes the same.

`make test-exports` installs it in an environment of its own, and names that in LLAMACPP_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import nearplane as npl
from nearplane.codes.block_types import GRIDS
from nearplane.export.formats import export
from nearplane.export.gguf.architecture import ARCHITECTURES
from nearplane.export.load import load_tokenizer
from nearplane.methods import GGUF, HPTQ, RTN
from nearplane.pipeline import quantize
from tests.export.test_gguf import TOKENS, model_of

PYTHON = os.environ.get("LLAMACPP_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="make test-exports runs this")
TEXTS = ["the nearest plane 123 of  a lattice", "Ünï — 漢字\n\n\tcode()", " after</s> all "]
# activations of 8 bits are off by 1 / (127 √12) of the largest of 32: 0.4 % of a normal one a layer
FAR = 0.03


def ask(file, questions, folder):
    """Return llama.cpp's answers to what worker.py can be asked."""
    asked, answers = folder / "questions.json", folder / "answers.npz"
    asked.write_text(json.dumps(questions))
    worker = Path(__file__).with_name("worker.py")
    command = [PYTHON, worker, file, asked, answers]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(answers)


def answers_of(file, tokens, folder):
    """Return llama.cpp's logits for tokens, and its tokens of TEXTS."""
    found = ask(file, {"texts": TEXTS, "tokens": tokens}, folder)
    assert len(found["written"]) == 4
    return torch.from_numpy(found["logits"]), json.loads(str(found["cut"]))


METHODS = [RTN(bits=8, group_size=32), HPTQ(bpw=4.0)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_llama_cpp_computes_the_same(family, method, tmp_path):
    compare(family, method, tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_positions_are_scaled_alike(rope, tmp_path):
    rope = rope | {"rope_theta": 10000.0}
    compare("llama", METHODS[0], tmp_path, rope_parameters=rope)


@pytest.mark.parametrize("name", GRIDS)
def test_types_are_computed_alike(name, tmp_path):
    """Down-projections have rows of 256 columns, all others of 64."""
    compare("llama", GGUF(type=name), tmp_path, intermediate=256)


def compare(family, method, tmp_path, **changes):
    """Export the tiny model of a family, and compare llama.cpp's logits and tokens with ours."""
    model_of(family, tmp_path / "model", **changes)
    quantize(tmp_path / "model", tmp_path / "out", method, TOKENS)
    file = export(tmp_path / "out", tmp_path / "gguf", "gguf") / "model.gguf"
    tokens = TOKENS[0].tolist()
    found, cut = answers_of(file, tokens, tmp_path)
    model = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    # half of the tokens: some may be routed to another expert
    off = float(((found - expected).norm(dim=-1) / spread).median())
    assert off < FAR, off
    tokenizer = load_tokenizer(tmp_path / "out")
    assert cut == [tokenizer(text).input_ids for text in TEXTS]
