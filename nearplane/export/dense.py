"""A model in memory -> a plain directory that transformers and `quantize` open.

transformers refuses to save a model that came from a GGUF file, although its weights are dense by
then; opening such a file takes long, so that whoever needs it twice wants a directory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from nearplane.export import checkpoint_format as fmt
from nearplane.export.uncompressed import remaining_tensors
from nearplane.model.compute_dtype import name_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# what says where a model came from, or how it was stored there
FOREIGN = ("quantization_config", "_name_or_path", "_model_name_or_path")


def save_dense(model: "PreTrainedModel", tokenizer: Any, out: str | Path) -> None:
    """Write weights, configuration and tokenizer to `out`, which is made if it is not there."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().contiguous() for n, t in remaining_tensors(model, ()).items()}
    save_file(tensors, out / fmt.SINGLE, metadata=fmt.METADATA)
    tokenizer.save_pretrained(out)
    (out / fmt.CONFIG).write_bytes(fmt.json_bytes(dense_config(model)))


def dense_config(model: "PreTrainedModel") -> dict[str, Any]:
    """Return the model's configuration without what is true of its source only."""
    config = {key: part for key, part in model.config.to_dict().items() if key not in FOREIGN}
    dtype = name_of(model.dtype)
    return config | {"architectures": [type(model).__name__], "dtype": dtype}
