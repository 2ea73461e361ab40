"""Everything that reads a file from somebody else, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from tests.fuzz import records

Files = dict[str, bytes]


class Target(Protocol):
    """Draws damaged files, and reads them as nearplane would."""

    def draw(self, random: Random) -> Files:
        """Return name -> content of some damaged files."""
        ...

    def check(self, files: Files) -> None:
        """Read them: NearplaneError where they are refused, AssertionError for a promise broken."""
        ...


@dataclass
class RecordTarget:
    """Records in memory."""

    kept: list[bytes]
    read: Callable[[bytes], None]

    def draw(self, random: Random) -> Files:
        return {"record.bin": records.draw(self.kept, random)}

    def check(self, files: Files) -> None:
        self.read(files["record.bin"])


def record_target(place: Path) -> Target:
    return RecordTarget(list(records.corpus().values()), records.check)


def stream_target(place: Path) -> Target:
    rans = [record for name, record in records.corpus().items() if "rans" in name]
    return RecordTarget(rans, records.check_both_decoders)


def shard_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    whole = d.written_checkpoint(d.fresh(place, "shards"), shards=True)
    return d.DirectoryTarget(d.Damage(whole, d.files_of(whole, "*.safetensors")), d.read_all)


def json_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    whole = d.written_checkpoint(d.fresh(place, "json"), shards=True)
    return d.DirectoryTarget(d.Damage(whole, d.JSON), d.read_all)


def sums_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    whole = d.written_checkpoint(d.fresh(place, "sums"), shards=False)
    return d.DirectoryTarget(d.Damage(whole, d.files_of(whole, "SHA*", "*.json")), d.read_sums)


def load_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    whole = d.written_checkpoint(d.fresh(place, "load"), shards=False)
    names = d.files_of(whole, "config.json", "*.safetensors", "generation_config.json")
    return d.DirectoryTarget(d.Damage(whole, names), d.load_model)


def tokenizer_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    whole = d.written_checkpoint(d.fresh(place, "tokenizer"), shards=False)
    names = d.files_of(whole, "tokenizer*", "special*", "*.jinja")
    return d.DirectoryTarget(d.Damage(whole, names), d.load_tokenizer)


def source_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    whole = d.written_model(d.fresh(place, "source"), shards=True)
    return d.DirectoryTarget(d.Damage(whole, d.files_of(whole, "*")), d.open_source_model)


def gguf_target(place: Path) -> Target:
    from tests.fuzz import directories as d

    folder = d.fresh(place, "gguf")
    folder.mkdir()
    name = d.written_gguf(folder / "a.gguf").name
    return d.DirectoryTarget(
        d.Damage(folder, [name]), lambda whole: d.open_source_model(whole / name)
    )


def packed_target(method: str) -> Callable[[Path], Target]:
    def target(place: Path) -> Target:
        from tests.fuzz import directories as d

        whole = d.written_packed(d.fresh(place, method), method)
        return d.DirectoryTarget(d.Damage(whole, d.files_of(whole, "*")), d.read_packed)

    return target


def text_target(place: Path) -> Target:
    from tests.fuzz.texts import TextTarget

    return TextTarget(place, ("a.txt", "a.jsonl", "a.json"))


def parquet_target(place: Path) -> Target:
    from tests.fuzz.texts import TextTarget

    return TextTarget(place, ("a.parquet",))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "record": record_target,
    "stream": stream_target,
    "shard": shard_target,
    "json": json_target,
    "sums": sums_target,
    "load": load_target,
    "tokenizer": tokenizer_target,
    "source": source_target,
    "gguf": gguf_target,
    "gptq": packed_target("gptq"),
    "awq": packed_target("awq"),
    "compressed-tensors": packed_target("compressed-tensors"),
    "text": text_target,
    "parquet": parquet_target,
}
