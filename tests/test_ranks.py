"""Several processes that quantize one model: the same result, and nothing lost when one dies."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import json
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import nearplane as npl
from nearplane.codes.host import narrowest
from nearplane.methods import METHODS
from nearplane.types import NearplaneError
from nearplane.walk.messages import from_message, to_message
from nearplane.walk.ranks import ALONE, Ranks
from tests import forked, ranks_program
from tests.cli import tiny
from tests.test_resume import content


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "model"
    tiny.model().save_pretrained(directory)
    return directory


def together(count: int, *words: object, program: str = "tests.ranks_program") -> None:
    """Run a program in so many processes, well.

    - `words`: names of functions, or that of one, a colon, and what it is given.
    """
    for run in forked.run_together(count, program, *words):
        assert run.returncode == 0, run.stderr[-3000:]


def by_torchrun(count: int, *words: object) -> subprocess.CompletedProcess:
    """Run the program as users do."""
    options = ["--standalone", "--nproc-per-node", count, "-m", "tests.ranks_program"]
    return forked.run("torch.distributed.run", *options, *words, OMP_NUM_THREADS="1")


def losses(out: Path) -> torch.Tensor:
    layers = json.loads((out / "config.json").read_text())["quantization_config"]["layers"]
    return torch.tensor([layer["loss"] for layer in layers.values()])


def stored(path: Path) -> list[bytes]:
    """Return the records in a file."""
    return [
        tensor.numpy().tobytes() for name, tensor in load_file(path).items() if "record" in name
    ]


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.long), 3])
def test_in_several_processes(count):
    together(
        count,
        "rows_are_rounded_as_alone",
        "parts_come_as_they_are",
        "every_method_as_alone",
        "errors_are_everybodys",
    )


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_experts_are_shared(count):
    works = "hessians_are_as_alone", "everybody_has_the_same", "some_processes_see_nothing"
    together(count, *works, program="tests.ranks_experts_program")


def test_the_same_hessians_give_the_same_bits(source, tmp_path):
    block = tmp_path / "block"
    tiny.model(layers=1).save_pretrained(block)
    ranks_program.quantize_on_the_same_hessians(str(source), str(block), str(tmp_path / "out1"))
    together(2, "quantize_on_the_same_hessians:", source, block, tmp_path / "out2")
    for name in METHODS:
        one, two = (tmp_path / f"out{count}-{name}" for count in (1, 2))
        assert content(one) == content(two)


def test_shared_calibration_gives_nearly_the_same(source, tmp_path):
    """Sums of another order: integers may differ where two are as near."""
    ranks_program.quantize(str(source), str(tmp_path / "1"), "eclq", "0")
    together(3, "quantize:", source, tmp_path / "3", "eclq", 0)
    alone, shared = (losses(tmp_path / name).sum() for name in "13")
    # tokens are held out by process, so that targets differ a little
    assert (shared - alone).abs() <= 0.05 * alone
    npl.load(tmp_path / "3")


def test_too_little_time_is_said_by_all(source, tmp_path):
    together(2, "too_little_time_is_said_by_all:", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_process_that_dies_ends_all_and_loses_nothing(source, tmp_path):
    out = tmp_path / "out"
    run = by_torchrun(2, "quantize:", source, out, "hptq", 6)
    assert run.returncode != 0 and not out.exists()
    assert "finished layers are kept" in run.stderr and "go on with --resume" in run.stderr
    kept = sorted(path.name for path in (tmp_path / ".out.unfinished").glob("0*.safetensors"))
    # q, k and v, then o; the sixth layer is one of gate and up
    assert kept[:2] == ["00000.safetensors", "00001.safetensors"]
    finished = [part for name in kept for part in stored(tmp_path / ".out.unfinished" / name)]
    together(3, "quantize:", source, out, "hptq", 0)
    # what was finished is there as it was, and not rounded again
    records = stored(out / "model.safetensors")
    assert len(finished) >= 4 and all(part in records for part in finished)
    ranks_program.quantize(str(source), str(tmp_path / "whole"), "hptq", "0")
    resumed, whole = losses(out).sum(), losses(tmp_path / "whole").sum()
    # Sums of another order let integers flip that are as near, and those after them are drawn
    # again. A squared error u² of u uniform in a box differs from its mean by 0.9 of it; were all
    # N > 28,000 integers drawn again and a fifth of them to make up the loss, it would move by
    # 0.9 √(2 / 5600) = 1.7 %, of which this is the triple.
    assert (resumed - whole).abs() <= 0.05 * whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@given(st.integers(0, 4000), st.integers(1, 700), st.integers(1, 9))
def test_no_part_is_less_than_a_grain(count, grain, size):
    starts = Ranks(0, size)._starts(count, grain)
    parts = [stop - start for start, stop in pairwise(starts)]
    assert starts[0] == 0 and starts[-1] == count and starts == sorted(starts)
    assert all(start % grain == 0 for start in starts[:-1])
    assert all(part == 0 or part >= min(grain, count) for part in parts)
    # as even as whole grains can be, but for the rest at the end
    assert max(parts) - min(parts) < 2 * grain


@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.int8, torch.int32, torch.int64, torch.uint8, torch.float32]),
            st.integers(0, 40),
            st.integers(0, 62),
        ),
        max_size=4,
    )
)
def test_a_parcel_holds_what_it_was_given(kinds):
    """Powers of two at the ends of every integer type that could be narrowed."""
    tensors = [
        ((-1) ** torch.arange(n) * (2**power - (torch.arange(n) % 2))).to(dtype)
        for dtype, n, power in kinds
    ]
    found = from_message(to_message(tuple(tensors)))
    assert len(found) == len(tensors)
    for one, other in zip(tensors, found, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_codes_travel_in_a_byte_each():
    code = torch.randint(-128, 128, (100, 64), dtype=torch.int32)
    assert len(to_message((code,))) < code.numel() + 100
    assert narrowest(torch.tensor([128])).dtype == torch.int16
    assert narrowest(torch.tensor([-(2**31) - 1])).dtype == torch.int64


def test_more_processes_than_sequences_are_refused():
    tokens = torch.zeros(2, 8, dtype=torch.long)
    assert ALONE.share(tokens) is tokens or torch.equal(ALONE.share(tokens), tokens)
    with pytest.raises(NearplaneError, match="2 sequences cannot be shared by 3 processes"):
        Ranks(0, 3).share(tokens)
