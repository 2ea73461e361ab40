"""The entry point; needs no vLLM."""

import importlib.util
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from nearplane.export.vllm import register

ROOT = Path(__file__).parent.parent.parent
HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_the_entry_point_is_register():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place, name = project["entry-points"]["vllm.general_plugins"]["nearplane"].split(":")
    assert (place, name) == (register.__module__, register.__name__)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_it_warns_in_one_sentence():
    for _ in range(2):
        with pytest.warns(UserWarning, match="vLLM will not read nearplane checkpoints") as noted:
            register()
        assert len(noted) == 1 and "\n" not in str(noted[0].message)


def test_a_failure_of_any_kind_is_a_warning(monkeypatch):
    def fail(name: str) -> None:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.warns(UserWarning, match="RuntimeError"):
        register()


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_registering_again_changes_nothing():
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        get_quantization_config,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        register()
        config = get_quantization_config("nearplane")
        register()
    assert get_quantization_config("nearplane") is config
    assert QUANTIZATION_METHODS.count("nearplane") == 1


def test_what_imports_the_package_does_not_wait_for_vllm():
    program = (
        "import nearplane.export.vllm, sys; assert not {'vllm', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
