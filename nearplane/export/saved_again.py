"""Bring SHA256SUMS up to date where `save_pretrained` of transformers writes over a checkpoint."""

import functools
from pathlib import Path
from typing import Any

from nearplane.export import checksums


@functools.cache
def keep_sums() -> None:
    """Let `save_pretrained` of all models leave no old sums behind in the directory it writes."""
    from transformers import PreTrainedModel

    theirs: Any = PreTrainedModel.save_pretrained

    @functools.wraps(theirs)
    def save_pretrained(self: Any, save_directory: str | Path, *options: Any, **named: Any) -> None:
        theirs(self, save_directory, *options, **named)
        if options[0] if options else named.get("is_main_process", True):
            bring_up_to_date(Path(save_directory), getattr(self, "hf_quantizer", None) is not None)

    setattr(PreTrainedModel, "save_pretrained", save_pretrained)  # noqa: B010


def bring_up_to_date(directory: Path, is_checkpoint: bool) -> None:
    """Sum up the files anew where there were sums before; remove these if it is no checkpoint.

    Where there were none, other files may still be written, such as a tokenizer's; `verify` then
    says that files are not checked.
    """
    path = directory / checksums.SUMS
    if not path.exists():
        return
    if not is_checkpoint:
        path.unlink()
        return
    names = checksums.listed_files(directory)
    path.write_bytes(
        checksums.sums_text({name: checksums.file_hash(directory / name) for name in names})
    )
