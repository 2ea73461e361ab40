"""What an unfinished run has done, kept on disk until its checkpoint appears.

A folder `.OUT.unfinished` beside OUT: `run.json` holds the settings of the run, `NAME.json` a value
that was computed for all layers together, such as their bits per weight, and `00012.safetensors`
the 13th group of layers that were quantized together. Every file is written under another name and
renamed when it is on disk, so that a file with one of these names is complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nearplane import codes
from nearplane.codes import CorruptError
from nearplane.export import output_directory
from nearplane.types import LayerReport, NearplaneError, QuantizedWeight

RUN = "run.json"
SUFFIX = ".unfinished"
TENSORS = ("record", "step", "loss", "damped_loss", "bound")
# fields of the run's settings that may change when it is resumed; any other change is an error
MAY_CHANGE = {"threads", "processes", "device", "float64"}

Finished = tuple[QuantizedWeight, LayerReport]
Content = bytes | None  # the bytes of a file; None if there is no such file


def unchanged(content: Content) -> Content:
    """Return `content`; the default of `Ledger`'s `broadcast`, for a single process."""
    return content


class Ledger:
    """The finished layers of a run to OUT, found again by a run that resumes.

    - `finished_layers`: how many layers this run has stored or read back.
    - `writes`: False in all processes of a run but the one that reads and writes the files.
    - `broadcast`: sends the bytes of a file from that process to the others, and returns them.
    """

    def __init__(
        self,
        out: str | Path,
        writes: bool = True,
        broadcast: Callable[[Content], Content] = unchanged,
    ):
        target = output_directory.resolved_output(out)
        self.directory = target.parent / f".{target.name}{SUFFIX}"
        self.finished_layers, self.writes, self.broadcast = 0, writes, broadcast

    def refuse_without_resume(self, resume: bool) -> None:
        """Raise NearplaneError if an earlier run left finished layers and `resume` is False."""
        if self.writes and not resume and self._has_layers():
            raise NearplaneError(
                f"an unfinished run left {len(self._files())} finished groups of layers in "
                f"{self.directory}: go on with --resume, or delete that folder to start anew"
            )

    def begin(self, run: Mapping[str, Any], resume: bool) -> list[str]:
        """Start a run, or resume the one whose layers are on disk; return the allowed differences.

        NearplaneError if the layers on disk are of a run with other settings, or if there are any
        and `resume` is False.

        - `run`: nested dictionaries of all settings that the result depends on.
        """
        if not self.writes:
            return []
        if not self._has_layers():
            shutil.rmtree(self.directory, ignore_errors=True)
            self._make()
            self.remember("run", run)
            return []
        self.refuse_without_resume(resume)
        # without `broadcast`: the other processes returned above and would not take part
        earlier = self._parsed(self.directory / RUN, self._read(self.directory / RUN))
        changes = differences(earlier if isinstance(earlier, dict) else {}, run)
        refused = {name: change for name, change in changes.items() if name not in MAY_CHANGE}
        if refused:
            raise NearplaneError(
                f"cannot resume {self.directory}: {'; '.join(refused.values())}; repeat the run "
                "as it was, or delete that folder to start anew"
            )
        return list(changes.values())

    def remember(self, name: str, value: Any) -> None:
        """Store a value that JSON can hold under `name`."""
        self._write(f"{name}.json", json.dumps(value, indent=1).encode())

    def recall(self, name: str) -> Any:
        """Return the value that was stored under `name`, or None."""
        path = self.directory / f"{name}.json"
        return self._parsed(path, self.broadcast(self._read(path)))

    def keep(
        self, group: int, originals: Sequence[Float[Tensor, "_ _"]], done: Sequence[Finished]
    ) -> None:
        """Store layers that were quantized together; they are on disk when this returns.

        - `group`: counts such groups of layers from 0, in the order of the run.
        - `originals`: their weights before; only the hashes are stored.
        """
        tensors = {
            f"{number}.{name}": getattr(weight, name).cpu().contiguous()
            for number, (weight, _) in enumerate(done)
            for name in TENSORS
            if getattr(weight, name) is not None
        }
        descriptions = [
            {
                "report": asdict(report),
                "original": digest(original),
                "group_size": weight.group_size,
                "code_bytes": weight.code_bytes,
                "void": weight.void,
                "facts": weight.facts,
            }
            for original, (weight, report) in zip(originals, done, strict=True)
        ]
        self._write(_file_name(group), save(tensors, metadata={"layers": json.dumps(descriptions)}))
        self.finished_layers += len(done)

    def find(
        self, group: int, names: Sequence[str], originals: Iterable[Float[Tensor, "_ _"]]
    ) -> list[Finished] | None:
        """Return the layers that `keep` stored for a group, or None if it did not.

        NearplaneError if their names are not `names`, or their weights before were not `originals`.
        """
        path = self.directory / _file_name(group)
        try:
            content = self.broadcast(self._read(path))
            if content is None:
                return None
            descriptions = json.loads(metadata_of(content)["layers"])
            tensors = load(content)
            done = [_restored(n, each, tensors) for n, each in enumerate(descriptions)]
        except (SafetensorError, CorruptError, OSError, ValueError, KeyError, TypeError) as error:
            raise NearplaneError(f"{path} cannot be read ({error}): delete it") from error
        if [report.name for _, report in done] != list(names):
            raise NearplaneError(f"{path} holds other layers than {', '.join(names)}: delete it")
        for (_, report), each, original in zip(done, descriptions, originals, strict=True):
            if each["original"] != digest(original):
                raise NearplaneError(
                    f"cannot resume: the weight of {report.name} is not what it was; delete "
                    f"{self.directory} to start anew"
                )
        self.finished_layers += len(done)
        return done

    def remove(self) -> None:
        """Delete the folder, once its layers are in the checkpoint or when there are none."""
        if self.writes:
            shutil.rmtree(self.directory, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Delete the folder if it holds no finished layer."""
        if not self._has_layers():
            self.remove()

    def _has_layers(self) -> bool:
        return bool(self._files())

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.safetensors"))

    def _make(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NearplaneError(f"cannot write {self.directory}: {error.strerror}") from error

    def _read(self, path: Path) -> Content:
        """Return the bytes of a file in the process that writes; None in the others."""
        return path.read_bytes() if self.writes and path.exists() else None

    def _parsed(self, path: Path, content: Content) -> Any:
        try:
            return None if content is None else json.loads(content)
        except ValueError as error:
            raise NearplaneError(f"{path} cannot be read: {error}; delete it") from error

    def _write(self, name: str, content: bytes) -> None:
        if not self.writes:
            return
        path = self.directory / name
        temporary = path.with_suffix(".part")
        with output_directory.explaining_full_disk(self.directory, len(content)):
            temporary.write_bytes(content)
            output_directory.sync(temporary)
            os.replace(temporary, path)
            output_directory.sync(self.directory)


def metadata_of(content: bytes) -> dict[str, str]:
    """Return the `__metadata__` of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], above: str = ""
) -> dict[str, str]:
    """Return field -> a sentence for every field of nested dictionaries that differs."""
    found: dict[str, str] = {}
    # `before` was read from JSON, which turns tuples into lists and keys into strings
    now = json.loads(json.dumps(now))
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new, f"{above}{name}.")
        elif old != new:
            found[above + name] = f"{above}{name} was {old!r} and is {new!r}"
    return found


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of the bytes of a tensor, in hexadecimal."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _restored(number: int, description: dict[str, Any], tensors: dict[str, Tensor]) -> Finished:
    """Return layer `number` of a group from the file that `Ledger.keep` wrote."""
    stored: dict[str, Any] = {name: tensors.get(f"{number}.{name}") for name in TENSORS}
    unpacked = codes.unpack(stored["record"])
    weight = QuantizedWeight(
        code=unpacked.code,
        step=stored["step"],
        group_size=description["group_size"],
        outliers=unpacked.outliers,
        record=stored["record"],
        code_bytes=description["code_bytes"],
        loss=stored["loss"],
        damped_loss=stored["damped_loss"],
        bound=stored["bound"],
        void=description["void"],
        facts=description["facts"],
        row_step=unpacked.row_step,
        minimum=unpacked.minimum,
    )
    return weight, LayerReport(**description["report"])


def _file_name(group: int) -> str:
    return f"{group:05d}.safetensors"


@cache
def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """Return the SHA-256 of the source files that a quantized layer depends on.

    These are the folders from the opened model to the rounded integers, and the kernels that
    round; plan/, report/, export/, evaluate/ and cli/ are not.
    """
    sha256 = hashlib.sha256()
    folders = ("codes", "lattice", "methods", "model", "walk")
    files = [path for folder in folders for path in sorted((package / folder).rglob("*.py"))]
    kernels = package / "kernels"
    files += [*sorted(kernels.rglob("nearest_plane.py")), *sorted(kernels.rglob("*.so"))]
    for path in [*files, *(package / f"{name}.py" for name in ("op", "rows", "types"))]:
        sha256.update(path.name.encode() + path.read_bytes())
    return sha256.hexdigest()
