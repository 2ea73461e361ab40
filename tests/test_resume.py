"""A run that ends before its time is gone on with: nothing finished is lost, no bit differs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import nearplane as npl
from nearplane.export.ledger import Ledger, code_digest, differences
from nearplane.methods import METHODS
from nearplane.model.selection import Rules
from nearplane.pipeline import Watcher
from nearplane.plan.calibration_size import CalibrationSize
from nearplane.types import NearplaneError
from tests.cli import tiny
from tests.contracts.test_methods import small

TOKENS = torch.randint(2, 300, (8, 32), generator=torch.Generator().manual_seed(0))
METHOD = METHODS["hptq"](bpw=6.0)
pytestmark = pytest.mark.whole_run
SEEN_ALL = 15  # layers of the model, its embedding included


class Ended(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "model"
    tiny.model().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def begun(source, tmp_path_factory) -> Callable[[Path], Path]:
    """Return what puts a run of METHOD that ended after five layers beside an `out`, made once."""
    made = tmp_path_factory.mktemp("begun")
    ended_after(source, made / "out", METHOD, 5)

    def put(place: Path) -> Path:
        shutil.copytree(made / ".out.unfinished", place / ".out.unfinished")
        return place / "out"

    return put


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    """Return what METHOD writes when nothing ends it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    npl.quantize(source, out, METHOD, TOKENS)
    return content(out)


def ended_after(source: Path, out: Path, method, layers: int, **options) -> None:
    """Run until so many layers are told of, and end there."""
    count = 0

    def stop(report, _):
        nonlocal count
        count += 1
        if count == layers:
            raise Ended

    with pytest.raises(Ended):
        npl.quantize(source, out, method, TOKENS, watcher=Watcher(done=stop), **options)
    assert not out.exists()


def content(out: Path) -> dict[str, bytes]:
    """Return all that a checkpoint is, but for the times in its report and their sum."""
    free = {"report.json", "report.html", "SHA256SUMS"}
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in free}


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_to_the_same_bits(source, tmp_path, name):
    method = small(METHODS[name])
    npl.quantize(source, tmp_path / "whole", method, TOKENS)
    # the default method from its first layer on, too
    for layers in (1, 9) if name == "eclq" else (9,):
        out = tmp_path / f"out{layers}"
        ended_after(source, out, method, layers)
        assert f".{out.name}.unfinished" in names(tmp_path)
        told = []
        report = npl.quantize(
            source,
            out,
            method,
            TOKENS,
            resume=True,
            watcher=Watcher(done=lambda report, _, told=told: told.append(report.name)),
        )
        assert len(told) == len(report["layers"]) == SEEN_ALL
        assert content(out) == content(tmp_path / "whole")
        assert f".{out.name}.unfinished" not in names(tmp_path)


def test_a_run_may_end_many_times(source, tmp_path):
    method = METHODS["eclq"](bpw=6.0)
    rules = Rules()
    npl.quantize(source, tmp_path / "whole", method, TOKENS, rules=rules)
    out = tmp_path / "out"
    for layers in range(2, SEEN_ALL + 2, 3):
        ended_after(source, out, method, layers, rules=rules, resume=True)
    npl.quantize(source, out, method, TOKENS, rules=rules, resume=True)
    assert content(out) == content(tmp_path / "whole")


def test_finished_layers_are_not_rounded_again(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    ended_after(source, out, METHOD, SEEN_ALL)

    def again(*_):
        raise AssertionError("rounded again")

    monkeypatch.setattr(type(METHOD), "together", again)
    monkeypatch.setattr(type(METHOD), "quantize_towards", again)
    npl.quantize(source, out, METHOD, TOKENS, resume=True)


def test_an_unfinished_run_is_neither_forgotten_nor_repeated_unasked(source, begun, tmp_path):
    out = begun(tmp_path)
    with pytest.raises(NearplaneError, match="go on with --resume, or delete that folder"):
        npl.quantize(source, out, METHOD, TOKENS)
    assert names(tmp_path) == [".out.unfinished"]


def test_an_unfinished_run_is_refused_before_the_model_is_opened(begun, tmp_path):
    out = begun(tmp_path)
    with pytest.raises(NearplaneError, match="go on with --resume, or delete that folder"):
        npl.quantize("no such model", out, METHOD, TOKENS)


def test_what_is_kept_is_told(source, tmp_path):
    said = []

    def stop(report, _):
        raise Ended

    with pytest.raises(Ended):
        npl.quantize(source, tmp_path / "out", METHOD, TOKENS, watcher=Watcher(said.append, stop))
    # the embedding is rounded by itself
    assert said[-1].startswith("1 finished layers are kept in ")
    assert said[-1].endswith("go on with --resume")


def test_resuming_what_was_never_begun_begins(source, tmp_path):
    npl.quantize(source, tmp_path / "out", METHOD, TOKENS, resume=True)
    assert names(tmp_path) == ["out"]


CHANGES = {
    "recipe.bpw was 6.0 and is 6.5": {"method": METHODS["hptq"](bpw=6.5)},
    "recipe.method was 'hptq' and is 'hrtn'": {"method": METHODS["hrtn"](bpw=6.0)},
    "recipe.damping was 0.01 and is 0.02": {"method": METHODS["hptq"](bpw=6.0, damping=0.02)},
    "tokens was ": {"calibration": TOKENS.flip(0)},
    r"rules.skip was \[\] and is \['o_proj'\]": {"rules": Rules(skip=("o_proj",))},
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_run_that_was_changed_is_refused_and_the_change_named(source, begun, tmp_path, said):
    out = begun(tmp_path)
    before = content(tmp_path / ".out.unfinished")
    told = {"method": METHOD, "calibration": TOKENS} | CHANGES[said]
    with pytest.raises(NearplaneError, match=f"cannot resume .*{said}"):
        npl.quantize(source, out, resume=True, **told)
    # and so it can be gone on with as it was
    assert names(tmp_path) == [".out.unfinished"]
    assert content(tmp_path / ".out.unfinished") == before


def test_another_number_of_threads_is_told_and_not_refused(source, begun, tmp_path, monkeypatch):
    out, said = begun(tmp_path), []
    # threads that wait for each other would take ten times as long
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    npl.quantize(source, out, METHOD, TOKENS, resume=True, watcher=Watcher(said.append))
    assert any("threads was 1 and is 2" in sentence for sentence in said)


def test_what_a_time_bought_is_not_bought_again(tmp_path, monkeypatch):
    """Another measurement would give other tokens, and all layers would be done again."""
    source = tiny.write_model(tmp_path / "source")
    out, told = tmp_path / "out", {"seconds": 60.0, "length": 32}
    monkeypatch.setattr(CalibrationSize, "fitting", lambda *_: 4)
    monkeypatch.setattr("tests.test_resume.TOKENS", [tiny.TEXT])
    ended_after(source, out, METHOD, 5, **told)
    monkeypatch.setattr(CalibrationSize, "fitting", lambda *_: 7)
    report = npl.quantize(source, out, METHOD, [tiny.TEXT], resume=True, **told)
    assert report["recipe"]["calibration"]["sequences"] == 4
    with pytest.raises(NearplaneError, match="--time or --sequences, not both"):
        npl.quantize(source, tmp_path / "both", METHOD, [tiny.TEXT], sequences=4, **told)
    with pytest.raises(NearplaneError, match="at least 1 sequence of at least 2 tokens"):
        npl.quantize(source, tmp_path / "none", METHOD, [tiny.TEXT], length=0)


def test_other_weights_are_refused(begun, tmp_path):
    out, other = begun(tmp_path), tmp_path / "other"
    model = tiny.model()
    model.model.layers[0].self_attn.k_proj.weight.data[3, 5] += 1
    model.save_pretrained(other)
    with pytest.raises(NearplaneError, match="the weight of .*k_proj is not what it was"):
        npl.quantize(other, out, METHOD, TOKENS, resume=True)


def test_a_damaged_ledger_is_named(source, begun, whole, tmp_path):
    out = begun(tmp_path)
    path = tmp_path / ".out.unfinished" / "00000.safetensors"
    good = path.read_bytes()
    for damaged in (good[:-40], b"", good[:200] + bytes(200) + good[400:]):
        path.write_bytes(damaged)
        with pytest.raises(NearplaneError, match=r"00000\.safetensors .*delete it"):
            npl.quantize(source, out, METHOD, TOKENS, resume=True)
    path.unlink()  # as it says
    npl.quantize(source, out, METHOD, TOKENS, resume=True)
    assert content(out) == whole


def test_a_file_has_its_name_when_it_is_whole_and_on_disk(tmp_path, monkeypatch):
    from nearplane.export import output_directory

    ledger = Ledger(tmp_path / "out")
    ledger.begin({}, False)
    seen, real = [], output_directory.sync
    monkeypatch.setattr(output_directory, "sync", lambda path: (seen.append(path), real(path)))
    ledger.remember("value", [1])
    folder = tmp_path / ".out.unfinished"
    assert seen == [folder / "value.part", folder]
    assert ledger.recall("value") == [1] and ledger.recall("nothing") is None


def test_a_full_disk_loses_nothing(source, whole, tmp_path, monkeypatch):
    """The system says so at the third group of layers."""
    out, written, real = tmp_path / "out", [], Path.write_bytes

    def full(path, content):
        if path.name[0].isdigit():
            written.append(path)
            if len(written) == 3:
                real(path, content[: len(content) // 2])
                raise OSError(28, "No space left on device", str(path))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    said = []
    with pytest.raises(NearplaneError, match="is full"):
        npl.quantize(source, out, METHOD, TOKENS, watcher=Watcher(said.append))
    assert said[-1].startswith("4 finished layers are kept")
    monkeypatch.undo()
    npl.quantize(source, out, METHOD, TOKENS, resume=True)
    assert content(out) == whole


def test_differences_are_those_of_json():
    before = json.loads(json.dumps({"a": {"b": 1, "c": (1, 2)}, "d": None}))
    assert differences(before, {"a": {"b": 1, "c": (1, 2)}, "d": None}) == {}
    found = differences(before, {"a": {"b": 2, "c": (1, 2)}, "e": 3})
    assert found == {"a.b": "a.b was 1 and is 2", "e": "e was None and is 3"}


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder that is a disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_really_fills_up_loses_nothing(source, whole, small_disk):
    """Somebody else takes all of it when the fifth layer is done."""
    out, other, said, done = small_disk / "out", small_disk / "other", [], []

    def fill(report, _):
        done.append(report.name)
        if len(done) == 5:
            with open(other, "wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))

    with pytest.raises(NearplaneError, match="is full"):
        npl.quantize(source, out, METHOD, TOKENS, watcher=Watcher(said.append, fill))
    assert said[-1].endswith("go on with --resume") and not out.exists()
    with pytest.raises(NearplaneError, match="is full|GB free"):
        npl.quantize(source, out, METHOD, TOKENS, resume=True)
    other.unlink()
    npl.quantize(source, out, METHOD, TOKENS, resume=True)
    assert content(out) == whole


DECIDES = (
    "model/blocks.py",
    "walk/walk.py",
    "methods/eclq.py",
    "lattice/basis.py",
    "codes/rans.py",
)
DECIDES += ("rows.py", "op.py", "kernels/cpu/nearest_plane.py")
DOES_NOT = ("plan/estimate.py", "cli/quantize.py", "export/ledger.py", "evaluate/verify.py")
DOES_NOT += ("pipeline.py", "version.py", "kernels/cpu/linear.py")


@pytest.mark.parametrize("file", DECIDES + DOES_NOT)
def test_the_digest_covers_what_decides_a_layer(file, tmp_path):
    """An edit of a sentence of the planner does not end a resume; one of the walk does."""
    copy = shutil.copytree(Path(npl.__file__).parent, tmp_path / "nearplane")
    before = code_digest(copy)
    assert before == code_digest()
    code_digest.cache_clear()
    with (copy / file).open("a") as edited:
        edited.write("# another sentence\n")
    assert (code_digest(copy) == before) == (file in DOES_NOT)
    code_digest.cache_clear()
