"""Opening the model that is to be quantized: a directory, a hub name or a GGUF file."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from reprlib import repr
from typing import Any

import torch
from torch import nn

from nearplane.model.auto_class import auto_class
from nearplane.model.block_files import BlockFiles
from nearplane.model.block_loading import BlockLoader, InMemory, OnDisk, stand_alone
from nearplane.model.blocks import find_blocks
from nearplane.model.gguf_header import check_gguf
from nearplane.model.process_memory import forget_file_pages
from nearplane.model.untrusted_files import (
    check_blocks,
    forget_fetched_code,
    panics_as_errors,
    told_to_trust,
)
from nearplane.model.weight_files import check_fit, read_shapes
from nearplane.types import NearplaneError, first_line

CONFIG = "config.json"
SUFFIXES = ("*.safetensors", "*.gguf")
UNPACKED = torch.bfloat16  # the type to which the mixed types of a GGUF file are unpacked
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "tekken.json")
ADAPTER = "adapter_config.json"  # where it lies, transformers loads an adapter, too


@dataclass(frozen=True)
class EmptyModel:
    """A model without weights: what its configuration and the headers of its files say.

    `open_model` loads the weights.

    - `where`: the arguments of `from_pretrained` that name the model.
    - `model`: on the meta device, where tensors take no memory.
    - `dtype`: the type that the weights are stored in.
    """

    name: str
    where: dict[str, Any]
    config: Any
    model: nn.Module
    dtype: torch.dtype

    @property
    def is_gguf(self) -> bool:
        return "gguf_file" in self.where

    @property
    def trusted(self) -> bool:
        """Whether Python files that the model brings may be run."""
        return bool(self.where["trust_remote_code"])

    @property
    def readable_by_blocks(self) -> bool:
        """Whether blocks can be loaded one by one: not of GGUF, nor where they share weights."""
        return not self.is_gguf and stand_alone(self.model, find_blocks(self.model)[1])


@dataclass(frozen=True)
class OpenModel:
    """An open model, its tokenizer (None where it has none) and the name it was opened by.

    - `loader`: loads the weights of a block while it is used, if they stay on disk.
    - `unused`: tensors of the files that the model's class does not take.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    loader: BlockLoader = field(default_factory=InMemory)
    unused: tuple[str, ...] = ()


def open_without_weights(
    name: str | Path, trust_remote_code: bool = False, bare: bool = False
) -> EmptyModel:
    """Return a causal language model on the meta device.

    - `bare`: also accept a directory that holds nothing but a config.json.

    Raises NearplaneError when there is no such model, no weights, a damaged file, a configuration
    that the files do not fit, or weights that are quantized already.
    """
    only_config = bare and is_only_config(Path(name))
    where = (
        pretrained(name, trust_remote_code) if only_config else location(name, trust_remote_code)
    )
    config = open_config(name, where)
    found = getattr(config, "quantization_config", None)
    if found and "gguf_file" not in where:
        method = found.get("quant_method") if isinstance(found, dict) else "something else"
        raise NearplaneError(
            f"{name} is quantized already, with {repr(method)}, as the quantization_config in its "
            "config.json says: give the original model"
        )
    if found is not None and not found:
        config.__dict__.pop("quantization_config", None)  # an empty one says nothing
    files = {}
    if Path(name).is_dir() and not only_config:
        files = read_shapes(Path(name))
        check_blocks(config, sum(map(len, files.values())))
    try:
        model = empty_model(config, trust_remote_code)
    # a model's class may raise any error for an unexpected config.json
    except Exception as error:
        raise NearplaneError(f"the model {name} cannot be loaded: {first_line(error)}") from error
    if files:
        check_fit(files, model)
    return EmptyModel(str(name), where, config, model, stored_dtype(config, where))


def empty_model(config: Any, trust_remote_code: bool) -> torch.nn.Module:
    """Build a model on the meta device, where tensors take no memory; `config` is not changed."""
    with torch.device("meta"):
        return auto_class(config).from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code
        )


def open_model(
    name: str | Path | EmptyModel,
    trust_remote_code: bool = False,
    by_blocks: bool = False,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
) -> OpenModel:
    """Load a causal language model and its tokenizer.

    - `name`: a directory, a hub name, a .gguf file, or what `open_without_weights` returned.
    - `by_blocks`: leave the blocks' weights on disk until they are needed.
    - `dtype`: the type to convert all weights to; None keeps the types of the file.
    - `tokenizer`: the model's, if it is open already.

    Raises NearplaneError when there is no such model, no weights, it is quantized already, or it
    cannot be read by blocks.
    """
    empty = name if isinstance(name, EmptyModel) else open_without_weights(name, trust_remote_code)
    if by_blocks:
        return opened_by_blocks(empty, tokenizer)
    model, unused = load(empty, dtype=dtype)
    model.eval().requires_grad_(False)
    tokenizer = tokenizer or open_tokenizer(empty.where)
    return OpenModel(empty.name, model, tokenizer, unused=unused)


def opened_by_blocks(empty: EmptyModel, tokenizer: Any) -> OpenModel:
    """Return a model whose blocks are on the meta device, and the loader that fetches them."""
    prefix, blocks = find_blocks(empty.model)
    if not empty.readable_by_blocks:
        why = "a GGUF file is unpacked" if empty.is_gguf else "its blocks share weights"
        raise NearplaneError(f"{empty.name} can only be loaded as a whole, since {why}")
    names = [f"{prefix}.{index}" for index in range(len(blocks))]
    files = BlockFiles(empty.name, prefix)
    with files.giving({}):
        model, unused = load(empty, {"": "cpu"} | dict.fromkeys(names, "meta"))
    model.eval().requires_grad_(False)
    # the files were downloaded by now
    fetched = replace(empty, where=empty.where | {"local_files_only": True})

    def block(index: int) -> nn.Module:
        devices = {"": "meta", names[index]: "cpu"}
        return load(fetched, devices)[0].get_submodule(names[index])

    _, blocks = find_blocks(model)
    forget_file_pages()
    loader = OnDisk(blocks, block, files)
    tokenizer = tokenizer or open_tokenizer(empty.where)
    return OpenModel(empty.name, model, tokenizer, loader, unused)


def is_only_config(directory: Path) -> bool:
    """Whether a directory holds nothing but a config.json."""
    return directory.is_dir() and {file.name for file in directory.iterdir()} == {CONFIG}


def pretrained(name: str | Path, trust_remote_code: bool) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a directory or a hub name."""
    return {"trust_remote_code": trust_remote_code, "pretrained_model_name_or_path": str(name)}


def location(name: str | Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`; NearplaneError for a path that is no model."""
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        if find_spec("gguf") is None:
            raise NearplaneError('GGUF files need the package gguf: pip install "nearplane[gguf]"')
        return pretrained(path.parent, trust_remote_code) | {"gguf_file": path.name}
    if path.is_file():
        raise NearplaneError(f"{name} is a file: give the directory of a model, or a .gguf file")
    if path.is_dir():
        if not (path / CONFIG).exists():
            raise NearplaneError(f"{name} has no config.json: it is not a model directory")
        check_weights_kind(path)
    elif path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise NearplaneError(f"there is no model directory {name}")
    return pretrained(name, trust_remote_code)


def check_weights_kind(directory: Path) -> None:
    """Raise NearplaneError if there are no weights, only pickled ones, or those of an adapter."""
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
    # a model's class may raise any error for an unexpected config.json
    except Exception as error:
        raise NearplaneError(f"the model {name} cannot be opened: {told_to_trust(error)}") from (
            error
        )
    if getattr(config, "transformers_weights", None) is not None:
        raise NearplaneError(f"the model {name} names weights that are not its own")
    if not where["trust_remote_code"]:
        forget_fetched_code(config)
    return config


def stored_dtype(config: Any, where: dict[str, Any]) -> torch.dtype:
    """Return the type of the stored weights: float32 if config.json names none."""
    if "gguf_file" in where:
        return UNPACKED
    dtype = getattr(config.get_text_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def load(
    empty: EmptyModel, devices: dict[str, str] | None = None, dtype: torch.dtype | None = None
) -> tuple[Any, tuple[str, ...]]:
    """Return the model with its weights on the CPU.

    - `devices`: name of a module -> device: "cpu", or "meta" for modules that are not loaded.
    - `dtype`: the type to convert weights to; None keeps the types of the file.

    With it come the names of tensors in the files that the class does not take. Raises
    NearplaneError when transformers cannot load it, or a tensor is missing.
    """
    options: dict[str, Any] = {"dtype": dtype or UNPACKED}
    if not empty.is_gguf:
        options = {"dtype": dtype or "auto", "config": empty.config, "use_safetensors": True}
    if devices is not None:
        options["device_map"] = devices
    try:
        with without_dispatch() if devices else nullcontext():
            loaded: Any = auto_class(empty.config).from_pretrained(
                **empty.where, **options, output_loading_info=True
            )
    # a model's class may raise any error for unexpected files
    except Exception as error:
        raise NearplaneError(
            f"the model {empty.name} cannot be loaded: {first_line(error)}"
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise NearplaneError(
            f"the model {empty.name} lacks {len(info['missing_keys'])} tensors: {some}"
        )
    return model, tuple(sorted(info["unexpected_keys"]))


@contextmanager
def without_dispatch() -> Iterator[None]:
    """Keep transformers from installing accelerate's hooks, which move weights between devices."""
    from transformers import modeling_utils

    module: Any = modeling_utils
    dispatch = module.accelerate_dispatch
    module.accelerate_dispatch = lambda *_, **__: None
    try:
        yield
    finally:
        module.accelerate_dispatch = dispatch


def open_tokenizer(where: dict[str, Any]) -> Any:
    """Return the tokenizer that lies beside the model, or None."""
    try:
        return load_tokenizer(where)
    # a model without a readable tokenizer is used without one
    except Exception:
        return None


def tokenizer_problem(where: dict[str, Any]) -> str:
    """Return why the tokenizer beside a model cannot be read; "" if it has no files there."""
    directory = Path(where["pretrained_model_name_or_path"])
    if not any(path for pattern in TOKENIZER_FILES for path in directory.glob(pattern)):
        return ""
    try:
        load_tokenizer(where)
    # every tokenizer has errors of its own
    except Exception as error:
        return first_line(error)
    return ""


def load_tokenizer(where: dict[str, Any]) -> Any:
    """Return the tokenizer that lies beside the model; any exception if it cannot be read."""
    from transformers import AutoTokenizer

    with panics_as_errors():
        return AutoTokenizer.from_pretrained(**where)
