"""The next block is read, and finished layers are written, while a block runs and is rounded."""

import random
import shutil
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nearplane.export.checkpoint_writer import Unwritten
from nearplane.methods import RTN
from nearplane.model import block_files
from nearplane.model.open_model import open_model
from nearplane.model.selection import Rules
from nearplane.model.weight_files import SINGLE
from nearplane.pipeline import Watcher, written
from nearplane.types import NearplaneError
from nearplane.walk import background
from nearplane.walk import read_ahead as read_ahead_file
from nearplane.walk.background import Background
from nearplane.walk.hidden_states import host_memory, pinned_bytes
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.read_ahead import read_ahead
from nearplane.walk.rounding import Rounder
from nearplane.walk.walk import Walk
from nearplane.walk.write_behind import WriteBehind
from tests.walk.tiny import FAMILIES, TOKENS

AMOUNTS = st.integers(0, 20)


class FakeClock:
    """Every thread has a time of its own, which goes on when it works or waits for another."""

    def __init__(self):
        self.threads = threading.local()

    def now(self) -> float:
        return getattr(self.threads, "time", 0.0)

    def wait_until(self, moment: float) -> None:
        self.threads.time = max(self.now(), moment)

    def work(self, seconds: float) -> None:
        self.threads.time = self.now() + seconds


class Store:
    """Takes some time to keep a group of layers, and remembers the order."""

    def __init__(self, clock: FakeClock, seconds: float):
        self.clock, self.seconds, self.kept = clock, seconds, []

    def keep(self, place, originals, done) -> None:
        self.clock.work(self.seconds)
        self.kept.append(place)

    def find(self, place, names, originals) -> None:
        return None


def total(blocks: int, read: float, work: float, write: float, ahead: bool = True) -> float:
    """Return the time that a walk over so many blocks takes, each a group of layers."""
    clock = FakeClock()
    store = Store(clock, write)
    with Background(ahead, clock) as reader, Background(ahead, clock) as writer:
        behind = WriteBehind(store, writer)
        for index, found in read_ahead(range(blocks), lambda i: (clock.work(read), i)[1], reader):
            assert found == index
            assert behind.find(index, [], []) is None
            clock.work(work)
            behind.keep(index, [], [])
    assert store.kept == list(range(blocks))
    return clock.now()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), AMOUNTS, AMOUNTS, AMOUNTS)
def test_reading_rounding_and_writing_take_the_time_of_the_longest(blocks, read, work, write):
    """
    Block i is taken at T(i) and rounded at E(i); its layers are written at W(i), for

        T(0) = r                T(i) = max(T(i-1) + r, E(i-1))          one block is read ahead
        E(i) = max(T(i), W(i-2)) + w                       one group waits while another is rounded
        W(i) = max(W(i-1), E(i)) + s

    The longest path through these goes once through each of r, w and s, and n - 1 times more
    through the longest of them: W(n-1) = r + w + s + (n - 1) max(r, w, s).
    """
    expected = read + work + write + (blocks - 1) * max(read, work, write)
    assert total(blocks, read, work, write) == expected
    one_by_one = blocks * (read + work + write)
    assert total(blocks, read, work, write, ahead=False) == one_by_one


def test_waiting_for_what_is_read_at_once_is_noticed(monkeypatch):
    begun = read_ahead_file.started

    def waiting(*given):
        job = begun(*given)
        found = None if job is None else job.result()
        return None if job is None else SimpleNamespace(result=lambda: found)

    assert total(5, 2, 3, 1) == 2 + 3 + 1 + 4 * 3
    monkeypatch.setattr(read_ahead_file, "started", waiting)
    assert total(5, 2, 3, 1) == 5 * (2 + 3) + 1


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    FAMILIES["llama"].model().save_pretrained(directory)
    return directory


def prepared(source: Path, store: Any, limits: ActivationLimits) -> Walk:
    """Return a walk over one layer of every block of a model that is read block by block."""
    opened = open_model(source, by_blocks=True)
    rules = Rules(skip=("self_attn", "gate_proj", "up_proj"), keep=("embedding", "head"))
    place = Placement(opened.model, opened.loader, limits=limits)
    walk = Walk(opened.model, RTN(bits=4, group_size=16), TOKENS, rules, placement=place)
    walk.store = store
    return walk.prepare()


def test_a_walk_reads_rounds_and_writes_at_the_same_time(source, monkeypatch):
    clock, (read, work, write) = FakeClock(), (5, 7, 3)
    own_read, own_round = Placement.read, Rounder.round

    def reading(self: Placement, index: int) -> Any:
        clock.work(read)
        return own_read(self, index)

    def rounding(self: Rounder, *given: Any) -> Any:
        clock.work(work)
        return own_round(self, *given)

    monkeypatch.setattr(background, "CLOCK", clock)
    monkeypatch.setattr(Placement, "read", reading)
    monkeypatch.setattr(Rounder, "round", rounding)
    store = Store(clock, write)
    walk = prepared(source, store, ActivationLimits(ahead=True))
    before, blocks = clock.now(), len(walk.layers)
    written(walk, Unwritten(), Watcher())
    assert clock.now() - before == read + work + write + (blocks - 1) * work
    assert store.kept == list(range(blocks)) and blocks > 1
    # without the memory for it nothing is read before it is asked for, or written later
    walk, before = prepared(source, store, ActivationLimits()), clock.now()
    written(walk, Unwritten(), Watcher())
    assert clock.now() - before == blocks * (work + write)


def test_weights_are_read_once_and_given_to_transformers(source, monkeypatch):
    """Every byte of a block that is read ahead is read by a plain read, and none is mapped."""
    read, mapped = [], []
    tensor_at, get_slice = block_files.tensor_at, block_files.Opened.get_slice

    def noted(file: Any, where: int, count: int, allocate: Any) -> torch.Tensor:
        read.append((where, count))
        return tensor_at(file, where, count, allocate)

    def got(self: Any, name: str) -> Any:
        found = get_slice(self, name)
        mapped.append((name, not isinstance(found, block_files.Slice)))
        return found

    monkeypatch.setattr(block_files, "tensor_at", noted)
    monkeypatch.setattr(block_files.Opened, "get_slice", got)
    opened = open_model(source, by_blocks=True)
    place = Placement(opened.model, opened.loader, limits=ActivationLimits(ahead=True))
    mapped.clear()
    with closing(place.in_order(range(len(place.blocks)))) as blocks:
        for index in blocks:
            given = [was for name, was in mapped if f".{index}." in name]
            assert given and not any(given)
            mapped.clear()
    weights = [tensor for name, tensor in load_file(source / SINGLE).items() if "layers" in name]
    assert len(read) == len(set(read)) == len(weights)
    assert sum(count for _, count in read) == sum(tensor.nbytes for tensor in weights)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_file_that_cannot_be_read_is_said_in_one_sentence(source, tmp_path, damage):
    copy = tmp_path / "model"
    shutil.copytree(source, copy)
    opened = open_model(copy, by_blocks=True)
    place = Placement(opened.model, opened.loader, limits=ActivationLimits(ahead=True))
    before = threading.active_count()
    # what is mapped keeps the file that was; a plain read sees what is there now
    content = (copy / SINGLE).read_bytes()
    (copy / SINGLE).unlink()
    if damage == "cut":
        (copy / SINGLE).write_bytes(content[: len(content) // 2])
    with pytest.raises(NearplaneError, match="cannot be loaded: .*(ends before|No such file)") as e:
        with closing(place.in_order(range(len(place.blocks)))) as blocks:
            list(blocks)
    assert "\n" not in str(e.value)
    assert threading.active_count() == before


def test_memory_that_cannot_be_pinned_is_not():
    """This torch has no accelerator; systems that have one may bound what is pinned."""
    for kind in ("cuda", "xpu", "cpu"):
        memory = host_memory(100, 36, device=torch.device(kind))
        assert memory.nbytes == 100 and memory.data_ptr() % 64 == 36
    assert [pinned_bytes(n) for n in (0, 1, 3, 4096, 4097)] == [0, 1, 4, 4096, 8192]


def hurried(draws: random.Random, blocks: int) -> tuple[list[tuple[int, float]], int]:
    """Return what is written where all sleep at random, and how many blocks were held at most."""
    held: set[int] = set()
    written: list[tuple[int, float]] = []
    most, lock = 0, threading.Lock()

    def sleep() -> None:
        time.sleep(draws.random() / 1000)

    def read(index: int) -> torch.Tensor:
        nonlocal most
        with lock:
            held.add(index)
            most = max(most, len(held))
        sleep()
        return torch.full((8,), float(index))

    class Slow:
        def keep(self, place, originals, done) -> None:
            sleep()
            written.append((place, float(originals[0].sum())))

        def find(self, place, names, originals) -> None:
            # only the group before this one may be unwritten
            assert len(written) >= place - 1

    with Background() as reader, Background() as writer:
        behind = WriteBehind(Slow(), writer)
        for index, found in read_ahead(range(blocks), read, reader):
            sleep()
            behind.find(index, [], [])
            behind.keep(index, [found], [])
            with lock:
                held.remove(index)
    return written, most


def test_order_and_results_do_not_depend_on_who_is_fast():
    draws = random.Random(0)
    for _ in range(20):
        written, most = hurried(draws, 12)
        assert written == [(index, 8.0 * index) for index in range(12)]
        assert most <= 2


def test_an_error_of_a_thread_is_raised_where_its_result_is_awaited():
    done = []

    def fails() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), Background() as thread:
        thread.start(done.append, 1)
        job = thread.start(fails)
        thread.start(done.append, 2)  # is not run
        with pytest.raises(OSError, match="no space"):
            job.result()
        thread.start(done.append, 3)
    assert done == [1]
    with pytest.raises(OSError, match="no space"), Background() as thread:
        thread.start(fails)
    # another error is not hidden by it, and what was handed in before is done
    with pytest.raises(KeyboardInterrupt), Background() as thread:
        thread.start(done.append, 4)
        thread.start(fails)
        raise KeyboardInterrupt
    assert done == [1, 4]


def test_a_block_that_is_called_again_is_not_read_while_it_is_in_use():
    read: list[int] = []

    def noted(index: int) -> int:
        read.append(index)
        return index

    with Background() as thread, closing(read_ahead([0, 0, 1, 0, 2], noted, thread)) as blocks:
        assert list(blocks) == [(0, 0), (0, None), (1, 1), (0, None), (2, 2)]
    assert read == [0, 1, 2]
