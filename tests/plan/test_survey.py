"""What a model has to quantize is said from its configuration, and is what a run then does."""

import json
import shutil

import pytest
import torch

from nearplane.methods import GPTQ, HPTQ, METHODS, SSQR
from nearplane.model.selection import Rules
from nearplane.plan.survey import survey
from nearplane.types import NearplaneError
from tests.cli.conftest import checkpoint, model_dir, nearplane, text
from tests.problem import problem

__all__ = ["checkpoint", "model_dir", "nearplane", "text"]


def test_the_survey_is_what_the_run_did(checkpoint, model_dir):
    report = json.loads((checkpoint / "report.json").read_text())
    found = survey(model_dir, HPTQ(bpw=5.0))
    assert {layer.name for layer in found.layers} == {row["name"] for row in report["layers"]}
    assert found.quantized == report["bits"]["quantized_weights"]
    assert found.unquantized == report["bits"]["other_numbers"]
    assert found.dtype == torch.float32
    stored = report["bits"]["quantized_bytes"] + report["bits"]["other_bytes"]
    assert found.stored_bytes == pytest.approx(stored, rel=0.05)


def test_layers_that_share_inputs_share_a_stage(model_dir):
    stages = survey(model_dir, HPTQ(bpw=5.0)).stages
    names = [[layer.name.rsplit(".", 1)[1] for layer in stage] for stage in stages[:5]]
    assert names == [
        ["embed_tokens"],
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_no_weight_is_loaded(model_dir):
    assert all(parameter.is_meta for parameter in survey(model_dir, GPTQ()).model.parameters())


def test_skipped_layers_are_kept(model_dir):
    whole, part = survey(model_dir, GPTQ()), survey(model_dir, GPTQ(), Rules(skip=("mlp",)))
    assert whole.quantized + whole.unquantized == part.quantized + part.unquantized
    assert len(part.layers) == 9 and len(part.selection.left_out()) == 6


def test_a_target_that_no_matrix_meets_is_refused(model_dir):
    with pytest.raises(NearplaneError, match="q_proj.*nearest that can"):
        survey(model_dir, HPTQ(bpw=1.1))


@pytest.mark.parametrize(
    "method",
    [METHODS["rtn"](bits=3, group_size=48), GPTQ(bits=4, group_size=64), SSQR(outliers=0.02)],
    ids=lambda method: method.name,
)
def test_sizes_of_fixed_width_methods(method):
    made = problem(0, 96, 200, dtype=torch.float32)
    quantized = method(made.weight, made.hessian)
    assert len(quantized.record) == pytest.approx(method.stored_bytes(96, 200), rel=0.06)


def test_a_configuration_alone_will_do(model_dir, tmp_path):
    shutil.copy(model_dir / "config.json", tmp_path)
    with pytest.raises(NearplaneError, match="no weights"):
        survey(tmp_path, GPTQ())
    bare, whole = survey(tmp_path, GPTQ(), bare=True), survey(model_dir, GPTQ())
    assert (bare.quantized, bare.unquantized) == (whole.quantized, whole.unquantized)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(NearplaneError, match="pickles"):
        survey(tmp_path, GPTQ(), bare=True)
