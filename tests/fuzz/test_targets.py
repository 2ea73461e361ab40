"""A few damaged files for every reader; `make fuzz` and `make test-long` feed them many more."""

import functools
import json
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import codes
from nearplane.export import checkpoint_format as fmt
from nearplane.types import NearplaneError
from tests.codes.draw import laws
from tests.fuzz import directories, mutate, records, run
from tests.fuzz.targets import TARGETS

# so many that each takes about a second
CASES = {
    **{"record": 60, "stream": 60, "shard": 10, "json": 20, "sums": 100, "load": 20},
    **{"tokenizer": 30, "source": 30, "gguf": 12, "text": 30, "parquet": 60},
    **{"gptq": 40, "awq": 40, "compressed-tensors": 40},
}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_in_one_sentence_or_read(name, tmp_path):
    target = TARGETS[name](tmp_path)
    outcomes = [run.outcome(target, target.draw(Random(seed))) for seed in range(CASES[name])]
    assert outcomes.count("refused") > CASES[name] // 10


@functools.cache
def kept() -> list[bytes]:
    return [record for record in records.corpus().values() if len(record) < 3000]


@given(which=st.integers(0, 10**6), at=st.floats(0, 1), junk=st.binary(min_size=1, max_size=9))
@settings(laws, max_examples=40)
def test_any_bytes_in_any_place_of_a_record(which, at, junk):
    record = bytearray(kept()[which % len(kept())])
    place = int(at * (len(record) - 5))
    record[place : place + len(junk)] = junk
    body = bytes(record[:-4])
    try:
        records.check(body + mutate.crc32(body))
    except codes.CorruptError as error:
        mutate.assert_one_sentence(error)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from([*mutate.TEXTS, *mutate.EXTREMES, *mutate.FLOATS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def damage(tmp_path_factory):
    place = tmp_path_factory.mktemp("json") / "whole"
    return directories.Damage(directories.written_checkpoint(place, shards=True), directories.JSON)


@pytest.mark.parametrize("name", directories.JSON)
@given(value=JSON, at=st.integers(0, 10**6))
@settings(laws, max_examples=10)
def test_any_json_in_any_place_of_a_checkpoint(damage, name, value, at):
    config = json.loads(damage.whole[name])
    places = list(mutate.places(config))
    holder, key = places[at % len(places)]
    holder[key] = value
    files = {name: json.dumps(config).encode()}
    target = directories.DirectoryTarget(damage, directories.read_all)
    try:
        target.check(files)
    except NearplaneError as error:
        mutate.assert_one_sentence(error)


@pytest.mark.parametrize("field", records.SIZES)
@pytest.mark.parametrize("case", ["huffman zeros", "dense zeros", "rans zeros"])
def test_a_header_that_promises_more_is_refused_before_memory_is_taken(case, field, peak_of):
    record = records.corpus_of_zeros()[case]
    at, width = field
    now = int.from_bytes(record[at : at + width], "little")
    for value in {extreme % 2 ** (8 * width) for extreme in mutate.EXTREMES} - {now}:
        body = record[:at] + value.to_bytes(width, "little") + record[at + width : -4]
        with pytest.raises(codes.CorruptError):
            assert peak_of(codes.inspect, body + mutate.crc32(body)) < 100_000
            codes.unpack(body + mutate.crc32(body))


@pytest.mark.parametrize("case", ["huffman zeros", "dense zeros", "rans zeros"])
def test_memory_is_in_proportion_to_what_a_record_may_hold(case, peak_of):
    """docs/formats/record.md: 64 bytes an integer, and so many integers a byte."""
    record = records.corpus_of_zeros(2000)[case]
    header = codes.inspect(record)
    integers = header.rows * header.columns
    peak = peak_of(codes.unpack, record)
    assert 4 * integers < peak < records.BYTES_AN_INTEGER * integers + 4 * 2**20
    assert integers <= codes.by_tag(header.code_tag).most_per_byte * len(record)


def test_a_case_that_fails_or_is_refused_badly_is_found(tmp_path):
    class Stub:
        def draw(self, random):
            return {"a": b"1"}

        def check(self, files):
            raise self.error

    stub, counts = Stub(), {"refused": 0, "accepted": 0}
    for error, fine in (
        (NearplaneError("no"), True),
        (NearplaneError("a\nb"), False),
        (ValueError("no"), False),
        (MemoryError(), False),
        (SystemExit(), False),
    ):
        stub.error = error
        assert run.run_case(stub, 3, tmp_path / "case.json", counts) == fine
    assert json.loads((tmp_path / "case.json").read_text()) == {"seed": 3, "files": {"a": "31"}}
    assert counts == {"refused": 1, "accepted": 0}


@pytest.mark.long
def test_the_driver_counts_cases_of_a_process_of_its_own():
    words = [sys.executable, "-m", "tests.fuzz.run", "--target", "record", "--cases", "20"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fuzz record: 20 cases" in done.stdout


def test_layers_of_a_checkpoint_are_named_as_the_format_says():
    assert fmt.is_name("model.layers.0.mlp") and not fmt.is_name("a\nb")
    assert not fmt.is_name("x" * 1001)
