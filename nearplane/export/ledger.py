"""What an unfinished run has done, kept on disk until its checkpoint appears.

A folder `.OUT.unfinished` beside OUT: `run.json` says which run it is, `NAME.json` what was found
out for all layers, `00012.safetensors` has the layers that were rounded together as the 13th.
Every file is on disk before it has its name, so that what has one is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
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
ENDING = ".unfinished"
TENSORS = ("record", "step", "loss", "damped_loss", "bound")
# what may differ between a run and the one that goes on with it: said, not refused
FREE = {"threads", "processes"}

Finished = tuple[QuantizedWeight, LayerReport]
Content = bytes | None  # of a file, if there is one


def same(content: Content) -> Content:
    return content


class Ledger:
    """The finished layers of a run to OUT, found again by a run that resumes.

    - `kept`: how many layers are on disk.
    - `writes`: False in a process that only reads what another one keeps.
    - `shared`: what a file held -> what it holds for all processes.
    """

    def __init__(
        self, out: str | Path, writes: bool = True, shared: Callable[[Content], Content] = same
    ):
        target = output_directory.resolved_output(out)
        self.directory = target.parent / f".{target.name}{ENDING}"
        self.kept, self.writes, self.shared = 0, writes, shared

    def refuse_unasked(self, resume: bool) -> None:
        """Raise NearplaneError if layers of a run are here and `resume` is not asked."""
        if self.writes and not resume and self._has_layers():
            raise NearplaneError(
                f"an unfinished run left {len(self._files())} finished groups of layers in "
                f"{self.directory}: go on with --resume, or delete that folder to start anew"
            )

    def begin(self, run: Mapping[str, Any], resume: bool) -> list[str]:
        """Start a run, or go on with the one that is here; returns what differs and may.

        - `run`: nested dictionaries of all that the result depends on.

        NearplaneError if layers of another run are here, or of this one and `resume` is not asked.
        """
        if not self.writes:
            return []
        if not self._has_layers():
            shutil.rmtree(self.directory, ignore_errors=True)
            self._make()
            self.remember("run", run)
            return []
        self.refuse_unasked(resume)
        # of this process alone: the others do not begin
        earlier = self._parsed(self.directory / RUN, self._own(self.directory / RUN))
        changes = differences(earlier if isinstance(earlier, dict) else {}, run)
        refused = {name: said for name, said in changes.items() if name not in FREE}
        if refused:
            raise NearplaneError(
                f"cannot resume {self.directory}: {'; '.join(refused.values())}; repeat the run "
                "as it was, or delete that folder to start anew"
            )
        return list(changes.values())

    def remember(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self._write(f"{name}.json", json.dumps(value, indent=1).encode())

    def recall(self, name: str) -> Any:
        """Return a value that was kept, or None."""
        path = self.directory / f"{name}.json"
        return self._parsed(path, self.shared(self._own(path)))

    def keep(
        self, place: int, originals: Sequence[Float[Tensor, "_ _"]], done: Sequence[Finished]
    ) -> None:
        """Keep layers that were rounded together as number `place`; durable on return."""
        tensors = {
            f"{number}.{name}": getattr(weight, name).contiguous()
            for number, (weight, _) in enumerate(done)
            for name in TENSORS
            if getattr(weight, name) is not None
        }
        about = [
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
        self._write(_name(place), save(tensors, metadata={"layers": json.dumps(about)}))
        self.kept += len(done)

    def find(
        self, place: int, names: Sequence[str], originals: Iterable[Float[Tensor, "_ _"]]
    ) -> list[Finished] | None:
        """Return the layers that were kept as number `place`, or None.

        NearplaneError if they are others, or if their original weights were.
        """
        path = self.directory / _name(place)
        try:
            content = self.shared(self._own(path))
            if content is None:
                return None
            about = json.loads(metadata_of(content)["layers"])
            tensors = load(content)
            done = [_restored(number, each, tensors) for number, each in enumerate(about)]
        except (SafetensorError, CorruptError, OSError, ValueError, KeyError, TypeError) as error:
            raise NearplaneError(f"{path} cannot be read ({error}): delete it") from error
        if [report.name for _, report in done] != list(names):
            raise NearplaneError(f"{path} holds other layers than {', '.join(names)}: delete it")
        for (_, report), each, original in zip(done, about, originals, strict=True):
            if each["original"] != digest(original):
                raise NearplaneError(
                    f"cannot resume: the weight of {report.name} is not what it was; delete "
                    f"{self.directory} to start anew"
                )
        self.kept += len(done)
        return done

    def remove(self) -> None:
        """Forget all: the checkpoint is there, or nothing was finished."""
        if self.writes:
            shutil.rmtree(self.directory, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Forget a run that has finished no layer."""
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

    def _own(self, path: Path) -> Content:
        """Return what a file holds, in the process that writes."""
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
        unnamed = path.with_suffix(".part")
        with output_directory.explaining_full_disk(self.directory, len(content)):
            unnamed.write_bytes(content)
            output_directory.sync(unnamed)
            os.replace(unnamed, path)
            output_directory.sync(self.directory)


def metadata_of(content: bytes) -> dict[str, str]:
    """Return what a safetensors file says beside its tensors."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], above: str = ""
) -> dict[str, str]:
    """Return field -> a sentence for every field of nested dictionaries that differs."""
    found: dict[str, str] = {}
    # as it comes back from JSON
    now = json.loads(json.dumps(now))
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new, f"{above}{name}.")
        elif old != new:
            found[above + name] = f"{above}{name} was {old!r} and is {new!r}"
    return found


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's numbers."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()


def _restored(number: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> Finished:
    own = {name: tensors.get(f"{number}.{name}") for name in TENSORS}
    held = codes.unpack(own["record"])
    weight = QuantizedWeight(
        code=held.code,
        step=own["step"],
        group_size=about["group_size"],
        outliers=held.outliers,
        record=own["record"],
        code_bytes=about["code_bytes"],
        loss=own["loss"],
        damped_loss=own["damped_loss"],
        bound=own["bound"],
        void=about["void"],
        facts=about["facts"],
    )
    return weight, LayerReport(**about["report"])


def _name(place: int) -> str:
    return f"{place:05d}.safetensors"
