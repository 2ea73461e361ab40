"""Opening the model that is to be quantized: a directory, a hub name or a GGUF file."""

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr
from typing import Any

import torch
from torch import nn

from nearplane.trust import forget_fetched_code
from nearplane.types import NearplaneError, first_line
from nearplane.walk.gguf_header import check_gguf
from nearplane.walk.weight_files import check_fit, read_shapes

SUFFIXES = ("*.safetensors", "*.gguf")
ADAPTER = "adapter_config.json"  # with it, transformers reads weights beside the model's


@dataclass(frozen=True)
class Source:
    """An open model, its tokenizer (None where it has none) and the name it was opened by."""

    name: str
    model: nn.Module
    tokenizer: Any


def open_source(name: str | Path, trust_remote_code: bool = False) -> Source:
    """Load a causal language model and its tokenizer, in the types of the file.

    Raises NearplaneError when there is no such model, no weights, or it is quantized already.
    """
    where = location(name, trust_remote_code)
    config = open_config(name, where)
    found = getattr(config, "quantization_config", None)
    if found and "gguf_file" not in where:
        method = found.get("quant_method") if isinstance(found, dict) else "something else"
        raise NearplaneError(
            f"{name} is quantized already, with {repr(method)}: give the original model"
        )
    model = load(name, where, config)
    model.eval().requires_grad_(False)
    return Source(str(name), model, open_tokenizer(where))


def location(name: str | Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return the arguments by which transformers finds the model; checks what a path must have."""
    path = Path(name)
    common = {"trust_remote_code": trust_remote_code}
    if path.suffix == ".gguf" and path.is_file():
        found = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        return common | found
    if path.is_file():
        raise NearplaneError(f"{name} is a file: give the directory of a model, or a .gguf file")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise NearplaneError(f"{name} has no config.json: it is not a model directory")
        check_weights_kind(path)
    elif path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise NearplaneError(f"there is no model directory {name}")
    return common | {"pretrained_model_name_or_path": str(name)}


def check_weights_kind(directory: Path) -> None:
    """Raise NearplaneError unless weights lie in `directory`, of its own and as data."""
    if (directory / ADAPTER).exists():
        raise NearplaneError(f"{directory} holds an adapter: merge it into its model first")
    if any(any(directory.glob(suffix)) for suffix in SUFFIXES):
        return
    if any(directory.glob("*.bin")):
        raise NearplaneError(
            f"{directory} has no weights but .bin files, which are pickles and may run code: "
            "convert them to safetensors"
        )
    raise NearplaneError(f"{directory} has no weights: no .safetensors file lies in it")


def open_config(name: str | Path, where: dict[str, Any]) -> Any:
    """Return the model's configuration without loading a weight."""
    from transformers import AutoConfig

    if "gguf_file" in where:
        check_gguf(Path(name))
    try:
        config = AutoConfig.from_pretrained(**where)
    # files may hold anything, and every model has errors of its own for that
    except Exception as error:
        raise NearplaneError(f"the model {name} cannot be opened: {first_line(error)}") from error
    if getattr(config, "transformers_weights", None) is not None:
        raise NearplaneError(f"the model {name} names weights that are not its own")
    if not where["trust_remote_code"]:
        forget_fetched_code(config)
    return config


def load(name: str | Path, where: dict[str, Any], config: Any) -> nn.Module:
    """Return the model with its weights on the CPU; a damaged file of a directory is named."""
    from transformers import AutoModelForCausalLM

    # a GGUF file's weights have many types; bfloat16 is what such models were made from
    kind: dict[str, Any] = {"dtype": torch.bfloat16}
    if "gguf_file" not in where:
        kind = {"dtype": "auto", "config": config, "use_safetensors": True}
    try:
        if "gguf_file" not in where and Path(name).is_dir():
            check_fit(read_shapes(Path(name)), config, where["trust_remote_code"])
        model, info = AutoModelForCausalLM.from_pretrained(
            **where, **kind, output_loading_info=True
        )
    except NearplaneError:
        raise
    except Exception as error:
        raise NearplaneError(f"the model {name} cannot be loaded: {first_line(error)}") from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise NearplaneError(f"the model {name} lacks {len(info['missing_keys'])} tensors: {some}")
    return model


def open_tokenizer(where: dict[str, Any]) -> Any:
    """Return the tokenizer that lies beside the model, or None."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**where)
    # a tokenizer that cannot be read is none, whatever it says
    except Exception:
        return None
