"""A directory or hub name -> a transformers model whose forward pass runs on the records."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nearplane.codes.resident import problem_of, wanting
from nearplane.export import checkpoint_reader
from nearplane.model.auto_class import auto_class
from nearplane.model.compute_dtype import AUTO, arithmetic_for, check_arithmetic, name_of
from nearplane.model.open_model import without_dispatch
from nearplane.model.untrusted_files import (
    check_blocks,
    forget_fetched_code,
    panics_as_errors,
    told_to_trust,
)
from nearplane.types import NearplaneError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    arithmetic: str = AUTO,
    resident: str = AUTO,
    activations: str = AUTO,
    without: Sequence[str] = (),
) -> "PreTrainedModel":
    """Return the model of a checkpoint, ready to evaluate.

    Equivalent to `from_pretrained` of transformers' `AutoModelForCausalLM`, or of the class that
    opens models of images and sound, but a checkpoint that is not whole is a NearplaneError.

    - `path`: a directory, or a name on the hub.
    - `dtype`: of activations and of what is not compressed; what `arithmetic` says by default.
    - `dequantize`: decode every layer now, into as much memory as the original took. Unsaid, layers
      are laid out for this machine's kernels, which multiply by the compressed weights.
    - `trust_remote_code`: run the Python files that a checkpoint of an unusual model brings.
    - `arithmetic`: the type that products run in: "float32", "bfloat16" or "float16"; "auto" is the
      checkpoint's own, or float32 where this processor is slow at that. `save_pretrained` stores
      the checkpoint's own type again.
    - `resident`: how weights are held in memory on a CPU: "compact" is about as small as the file,
      "fast" takes up to a bit a weight more, and integer activations, which moves results by about
      1e-4; "auto" is what this processor multiplies by faster, where memory allows it.
    - `activations`: "int8" lets the fast form take activations as integers of 8 bits, which moves
      results by about 1e-2; "exact" uses the compact form alone, which takes them as they are.
    - `without`: names of modules whose tensors are not loaded; they stay on the meta device.
    """
    check_arithmetic(arithmetic)
    check_resident(resident, activations)
    if dequantize and activations != AUTO:
        raise NearplaneError(
            f"{activations} activations are those of compressed weights: leave out dequantize "
            "(--no-dequantize)"
        )
    source = _checked(path)
    config = _config(source, trust_remote_code)
    checkpoint = checkpoint_reader.open_checkpoint(source) if Path(source).is_dir() else None
    stored = _stored_dtype(checkpoint, config)
    compute = dtype if dtype is not None else arithmetic_for(stored, arithmetic, device)
    settings = getattr(config, "quantization_config", None)
    if isinstance(settings, dict):
        settings["lay_out"] = not dequantize
        settings["stored_dtype"] = name_of(stored) if dtype is None and compute != stored else None
    tensors = None if checkpoint is None else len(checkpoint.file_of)
    # layers are laid out once, where they will be; decoding needs no other device than the CPU
    place = None if device is None or dequantize else {"": torch.device(device)}
    if without:
        place = {"": torch.device(device or "cpu")} | dict.fromkeys(without, torch.device("meta"))
    with wanting(resident, activations), without_dispatch() if without else nullcontext():
        model = _complete(source, tensors, config, compute, trust_remote_code, place)
    if getattr(model, "hf_quantizer", None) is None:
        raise NearplaneError(f"{path} is not a nearplane checkpoint")
    if dequantize:
        model = model.dequantize()
    return (model if device is None else model.to(device)).eval()  # pyright: ignore[reportArgumentType]


def check_resident(resident: str, activations: str = AUTO) -> None:
    """Raise NearplaneError unless `load` takes these words for `resident` and `activations`."""
    problem = problem_of(resident, activations)
    if problem:
        raise NearplaneError(problem)


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Return the tokenizer that was stored with a checkpoint.

    - `trust_remote_code`: run the Python files that the tokenizer of an unusual model brings.
    """
    from transformers import AutoTokenizer

    source = _checked(path)
    try:
        with panics_as_errors():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    # the files may hold anything, and every tokenizer has errors of its own for that
    except Exception as error:
        said = told_to_trust(error)
        raise NearplaneError(f"{path} has no tokenizer that can be read: {said}") from error


def _checked(path: str | Path) -> str:
    """Return `path` for from_pretrained; a directory is checked first, a hub name passes."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        checkpoint_reader.open_checkpoint(directory).check_files()
        return str(directory)
    if isinstance(path, Path) or _looks_local(str(path)):
        raise NearplaneError(f"there is no directory {path}")
    return str(path)


def _looks_local(name: str) -> bool:
    """Whether `name` cannot be OWNER/MODEL or MODEL on the hub."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def _config(source: str, trusted: bool) -> Any:
    """Return the configuration of `source`; NearplaneError if transformers cannot read it."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    # config.json may hold anything, and every model has errors of its own for that
    except Exception as error:
        raise NearplaneError(f"{source} cannot be loaded: {told_to_trust(error)}") from error
    if not trusted:
        forget_fetched_code(config)
    return config


def _stored_dtype(checkpoint: checkpoint_reader.Checkpoint | None, config: Any) -> torch.dtype:
    """Return the type of what is not compressed: of the files, or what the configuration says."""
    found = None if checkpoint is None else checkpoint.stored_dtype()
    named = getattr(config, "dtype", None)
    return found or (named if isinstance(named, torch.dtype) else torch.float32)


def _complete(
    source: str,
    tensors: int | None,
    config: Any,
    dtype: torch.dtype | str,
    trusted: bool,
    place: dict[str, torch.device] | None,
) -> "PreTrainedModel":
    """Return the model of `source`; NearplaneError if a tensor is missing or of another shape.

    - `tensors`: how many its files hold; None where that is not known before they are fetched.
    - `place`: transformers' device_map; on the CPU if None.
    """
    try:
        if tensors is not None:
            check_blocks(config, tensors)
        loaded: Any = auto_class(config).from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=trusted,
            device_map=place,
            use_safetensors=True,
            output_loading_info=True,
        )
    except NearplaneError:
        raise
    # config.json may hold anything, and every model has errors of its own for that
    except Exception as error:
        said = first_line(error)
        raise NearplaneError(f"{source} cannot be loaded: {said}") from error
    model, found = loaded
    lacking = sorted(str(key) for key in [*found["missing_keys"], *found["mismatched_keys"]])
    if lacking:
        some = ", ".join(lacking[:3])
        raise NearplaneError(f"{source} lacks {len(lacking)} tensors of the model, such as {some}")
    return model
