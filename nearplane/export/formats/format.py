"""What a format for other programs is, and writing a checkpoint in one."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from nearplane.export import output_directory
from nearplane.export.checkpoint_reader import Checkpoint, open_checkpoint
from nearplane.export.companion_files import companion_files
from nearplane.types import NearplaneError

FORMATS: dict[str, "Format"] = {}
Says = Callable[[str], None]  # given a sentence for whoever waits


class Format(ABC):
    """A format that checkpoints can be exported to; subclasses register themselves.

    - `name`: on the command line. `title`: what the files are, and who reads them. `holds`: which
      checkpoints.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    holds: ClassVar[str]

    def __init_subclass__(cls) -> None:
        FORMATS[cls.name] = cls()

    def check(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - most formats hold everything
        """Raise NearplaneError, with the reason, if the format cannot hold this checkpoint."""

    @abstractmethod
    def write(self, checkpoint: Checkpoint, out: Path, trust_remote_code: bool, says: Says) -> None:
        """Write weights and configuration into the empty directory `out`.

        - `trust_remote_code`: whether Python files that the model brings may run.
        - `says`: called with what the user should know of the files.
        """


def export(
    directory: str | Path,
    out: str | Path,
    to: str,
    trust_remote_code: bool = False,
    says: Says = lambda sentence: None,
) -> Path:
    """Write a checkpoint in another format; OUT appears whole or not at all. Returns its path.

    The tokenizer's and the other files that go with the model are copied.

    Raises NearplaneError for an unknown format, or one that cannot hold this checkpoint, before
    anything is written.
    """
    if to not in FORMATS:
        raise NearplaneError(f"no format is called {to!r}; there are {', '.join(sorted(FORMATS))}")
    target = output_directory.resolved_output(out)
    checkpoint = open_checkpoint(directory)
    checkpoint.check_files()
    FORMATS[to].check(checkpoint)
    companions = companion_files(checkpoint.directory)
    partial, lock = output_directory.create(target)
    try:
        FORMATS[to].write(checkpoint, partial, trust_remote_code, says)
        for name, path in companions.items():
            if not (partial / name).exists():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, partial / name)
        output_directory.rename_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()
    return target
