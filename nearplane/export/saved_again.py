"""Bring SHA256SUMS up to date where `save_pretrained` writes over a checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

from nearplane.export import checksums


def keep_sums(model: Any) -> None:
    """Let the model's `save_pretrained` leave no old sums behind in the directory it writes."""
    model.save_pretrained = partial(save_with_sums, model)


def save_with_sums(
    model: Any, save_directory: str | Path, is_main_process: bool = True, **options: Any
) -> None:
    """Call the class's `save_pretrained`; then sum up the files where there were sums before.

    Where there were none, other files may still be written, such as a tokenizer's; `verify` then
    says that files are not checked.
    """
    type(model).save_pretrained(model, save_directory, is_main_process, **options)
    directory = Path(save_directory)
    if not is_main_process or not (directory / checksums.SUMS).exists():
        return
    if getattr(model, "hf_quantizer", None) is None:
        # the model was dequantized: this is no checkpoint any more
        (directory / checksums.SUMS).unlink()
        return
    names = checksums.listed_files(directory)
    hashes = {name: checksums.file_hash(directory / name) for name in names}
    (directory / checksums.SUMS).write_bytes(checksums.sums_text(hashes))
