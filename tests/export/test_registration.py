"""`import nearplane` is lean, and transformers knows the format whichever comes first."""

import subprocess
import sys

import pytest

REGISTERED = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING
assert AUTO_QUANTIZER_MAPPING["nearplane"].__name__ == "NearplaneQuantizer"
assert AUTO_QUANTIZATION_CONFIG_MAPPING["nearplane"].__name__ == "NearplaneConfig"
waiting = [f.awaited for f in sys.meta_path if type(f).__name__ == "AwaitingFinder"]
assert waiting in ([], ["peft.tuners.lora.model"])
"""
ADAPTERS = """
import peft, sys
from nearplane.export.adapters import _create_new_module
assert peft.tuners.lora.model.LoraModel._create_new_module is _create_new_module
"""
LEAN = """
import torch, time
start = time.perf_counter()
import nearplane as npl
seconds = time.perf_counter() - start
assert "transformers" not in sys.modules and "triton" not in sys.modules
assert not torch.cuda.is_initialized()
assert npl.HPTQ and npl.lattice.gptq and npl.QuantizedWeight and "load" in dir(npl)
assert "transformers" not in sys.modules
assert seconds < 1, seconds
"""
PROGRAMS = {
    "nearplane first": "import nearplane\nfrom transformers import AutoModelForCausalLM",
    "auto class first": "from transformers import AutoModelForCausalLM\nimport nearplane",
    "quantizers first, and twice": (
        "import transformers.quantizers, nearplane, importlib, nearplane.export.transformers as t\n"
        "importlib.reload(t)\nimportlib.reload(nearplane)"
    ),
}


def run(program: str) -> None:
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", f"import sys\n{program}"], check=True
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_registered_in_any_order_of_imports(name):
    run(PROGRAMS[name] + REGISTERED)


@pytest.mark.parametrize("first", ["import nearplane", "import peft\nimport nearplane"])
def test_peft_is_taught_in_any_order_of_imports(first):
    pytest.importorskip("peft")
    run(first + ADAPTERS + REGISTERED)


def test_import_is_lean():
    run(LEAN)


def test_lazy_names():
    import nearplane as npl
    from nearplane.export.load import load

    assert npl.load is load
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        npl.nothing  # noqa: B018
