"""A plain transformers directory: every compressed weight decoded, in the checkpoint's own type."""

from pathlib import Path

from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.export.formats.format import Format, Says
from nearplane.export.load import load
from nearplane.export.output_directory import check_space


class Uncompressed(Format):
    """value = step · code + outliers, rounded to the type of what is not compressed.

    As large as the model before it was quantized, and read by everything that reads safetensors.
    """

    name = "transformers"
    title = "decoded weights as safetensors, without nearplane: transformers, vLLM, converters"
    holds = "all methods and families"

    def write(self, checkpoint: Checkpoint, out: Path, trust_remote_code: bool, says: Says) -> None:
        dtype = checkpoint.stored_dtype()
        size = dtype.itemsize if dtype is not None else 4
        weights = sum(entry["rows"] * entry["columns"] for entry in checkpoint.layers.values())
        check_space(out, size * weights)
        model = load(
            checkpoint.directory,
            dtype=dtype,
            dequantize=True,
            trust_remote_code=trust_remote_code,
        )
        model.save_pretrained(out)
