"""Opening the model that is to be quantized: a directory, a hub name or a GGUF file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearplane.types import NearplaneError

SUFFIXES = ("*.safetensors", "*.bin", "*.gguf")


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
    if getattr(config, "quantization_config", None) and "gguf_file" not in where:
        method = dict(config.quantization_config).get("quant_method", "something else")
        raise NearplaneError(f"{name} is quantized already, with {method}: give the original model")
    model = load(name, where)
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
        if not any(any(path.glob(s)) for s in SUFFIXES):
            raise NearplaneError(f"{name} has no weights: no .safetensors or .bin file lies in it")
    elif path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise NearplaneError(f"there is no model directory {name}")
    return common | {"pretrained_model_name_or_path": str(name)}


def open_config(name: str | Path, where: dict[str, Any]) -> Any:
    """Return the model's configuration without loading a weight."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(**where)
    except (OSError, ValueError, KeyError) as error:
        raise NearplaneError(f"the model {name} cannot be opened: {first_line(error)}") from error


def load(name: str | Path, where: dict[str, Any]) -> nn.Module:
    """Return the model with its weights on the CPU."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # a GGUF file's weights have many types; bfloat16 is what such models were made from
    dtype = torch.bfloat16 if "gguf_file" in where else "auto"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
