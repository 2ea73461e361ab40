"""Files are data: nothing that lies in a directory is run unless the user says so."""

import ast
import inspect
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import nearplane as npl
from nearplane.cli import evaluate
from nearplane.cli.run_settings import Settings
from nearplane.export import checkpoint_format as fmt
from nearplane.export import load
from nearplane.methods import RTN
from nearplane.model import open_model
from nearplane.model.untrusted_files import forget_fetched_code
from nearplane.plan import survey
from nearplane.types import NearplaneError

PACKAGE = Path(npl.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}
MODULES |= {"joblib", "subprocess", "pty", "code", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
# module.function
QUALIFIED = {"torch.load", "numpy.load", "np.load", "os.system", "os.popen", "torch.hub.load"}
MARK = "it_ran"
CODE = f"""
from pathlib import Path
Path(__file__).with_name("{MARK}").touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "strange"
class Model(LlamaForCausalLM): config_class = Config
class Tokens(PreTrainedTokenizerFast): pass
"""


def calls(tree: ast.AST) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_reader_of_programs_is_in_the_package():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            wrong += [f"{path}: imports {n}" for n in names if n.split(".")[0] in MODULES]
        for name in calls(tree):
            if name in CALLS or name in QUALIFIED or "allow_pickle" in name:
                wrong.append(f"{path}: calls {name}")
    assert not wrong


def test_code_is_trusted_by_default_nowhere():
    for function in (
        npl.load,
        npl.quantize,
        open_model.open_model,
        open_model.location,
        survey.survey,
    ):
        assert inspect.signature(function).parameters["trust_remote_code"].default is False
    assert Settings().trust_remote_code is False
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                if isinstance(node.value, ast.Constant) and node.value.value is not False:
                    wrong.append(f"{path}:{node.value.lineno}")
    assert not wrong


@pytest.fixture
def with_code(copied):
    """Return a function that puts Python files into a copied directory, and says to use them."""

    def put(kind: str, model_type: str) -> Path:
        copy = copied(kind)
        (copy / "strange.py").write_text(CODE)
        auto = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
        config = json.loads((copy / fmt.CONFIG).read_text())
        config |= {"auto_map": auto, "model_type": model_type}
        (copy / fmt.CONFIG).write_text(json.dumps(config))
        tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
        tokenizer |= {"auto_map": {"AutoTokenizer": ["strange.Tokens", "strange.Tokens"]}}
        tokenizer["tokenizer_class"] = "Tokens"
        (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        return copy

    return put


@pytest.mark.parametrize("model_type", ["llama", "strange"])
@pytest.mark.parametrize(
    "kind, read",
    [
        ("checkpoint", npl.load),
        ("checkpoint", npl.load_tokenizer),
        ("checkpoint", lambda path: evaluate.open_any(str(path), dequantize=True)),
        ("model", open_model.open_model),
        ("model", lambda path: survey.survey(path, RTN(4))),
        ("model", lambda path: evaluate.open_any(str(path), dequantize=True)),
    ],
    ids=["load", "load_tokenizer", "run", "open_model", "plan", "eval"],
)
def test_python_files_of_a_directory_are_not_run(kind, read, model_type, with_code, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.get_class_in_module", lambda *a, **k: ran.append(a)
    )
    copy = with_code(kind, model_type)
    try:
        read(copy)
    except NearplaneError as error:
        assert model_type == "strange" or "has no tokenizer that can be read" in str(error)
    assert not ran and not (copy / MARK).exists()


def test_python_files_are_run_when_the_user_says_so(with_code, monkeypatch, tmp_path):
    """The test itself: the files above would run."""
    ran = []
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.get_class_in_module", lambda *a, **k: ran.append(a)
    )
    copy = with_code("model", "strange")
    with pytest.raises(NearplaneError):
        open_model.open_model(copy, trust_remote_code=True)
    assert ran


class Harm:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path(MARK),)


def test_a_pickle_is_not_opened(copied, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    copy = copied("model")
    (copy / "model.safetensors").unlink()
    torch.save({"a": Harm()}, copy / "pytorch_model.bin")
    with pytest.raises(NearplaneError, match="pickles and may run code: convert"):
        open_model.open_model(copy)
    (copy / "other.safetensors").touch()
    with pytest.raises(NearplaneError, match="holds neither model.safetensors nor"):
        open_model.open_model(copy)
    assert not Path(MARK).exists()
    pickle.loads(pickle.dumps(Harm()))
    assert Path(MARK).exists(), "the test itself"


def test_compiled_code_is_not_fetched_for_a_configuration(copied, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "transformers.modeling_utils.lazy_import_flash_attention", lambda *a, **k: asked.append(a)
    )
    for kind, read in (("checkpoint", npl.load), ("model", open_model.open_model)):
        copy = copied(kind)
        config = json.loads((copy / fmt.CONFIG).read_text())
        config["attn_implementation"] = config["_attn_implementation"] = "somebody/kernels"
        (copy / fmt.CONFIG).write_text(json.dumps(config))
        model = read(copy)
        model = getattr(model, "model", model) if kind == "model" else model
        assert model.config._attn_implementation in ("sdpa", "eager")
        os.rename(copy, copy.with_name(kind))
    assert not asked


def test_what_transformers_has_itself_may_be_chosen():
    for kind, kept in (("eager", "eager"), ("sdpa", "sdpa"), ("a/b", None), ({"": "a/b"}, None)):
        config = LlamaConfig()
        config._attn_implementation = kind
        forget_fetched_code(config)
        assert config._attn_implementation == kept


def test_load_asks_for_safetensors_only():
    assert "use_safetensors=True" in inspect.getsource(load)
    assert '"use_safetensors": True' in inspect.getsource(open_model)


def test_what_holds_a_promise_exists():
    security = PACKAGE.parent / "SECURITY.md"
    if not security.exists():
        pytest.skip("nearplane is installed, and its repository is not here")
    named = re.findall(r"`(tests/[\w./]+)`", security.read_text())
    assert len(named) > 8
    assert not [path for path in named if not (PACKAGE.parent / path).exists()]
