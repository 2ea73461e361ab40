"""Which rows and columns each process holds; needs no vLLM."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.export.vllm.shards import (
    LayerEntry,
    TensorParallelRank,
    TensorParallelShard,
    shards_of,
)
from nearplane.types import NearplaneError
from tests.export.tiny import pack_layer


def rows_of(shards: list[TensorParallelShard]) -> list[list[int]]:
    return [list(shard.rows) for shard in shards]


@given(st.integers(1, 8), st.integers(1, 5))
def test_processes_share_all_rows_and_columns(ranks, held):
    places = [TensorParallelRank(rank, ranks) for rank in range(ranks)]
    whole = ranks * held
    assert [row for p in places for row in p.rows(whole, held, "x")] == list(range(whole))
    assert [column for p in places for column in p.columns(whole, held)] == list(range(whole))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_few_heads_are_held_by_several_neighbours(heads, copies, head_size):
    ranks = heads * copies
    held = [
        TensorParallelRank(rank, ranks).rows(heads * head_size, head_size, "x")
        for rank in range(ranks)
    ]
    assert held == [
        range(rank // copies * head_size, (rank // copies + 1) * head_size) for rank in range(ranks)
    ]


@given(st.integers(1, 8), st.integers(1, 40))
def test_what_is_not_shared_is_held_whole(ranks, count):
    for rank in range(ranks):
        assert TensorParallelRank(rank, ranks).rows(count, count, "x") == range(count)
        assert TensorParallelRank(rank, ranks).columns(count, count) == range(count)


@pytest.mark.parametrize(("whole", "held", "ranks"), [(10, 4, 2), (6, 2, 2), (4, 8, 2), (4, 0, 1)])
def test_other_shares_are_refused(whole, held, ranks):
    with pytest.raises(NearplaneError, match=f"x has {whole} rows, of which vLLM puts {held} on"):
        TensorParallelRank(0, ranks).rows(whole, held, "x")


QKV = [LayerEntry("q", 100, 32, 24), LayerEntry("k", 90, 16, 24), LayerEntry("v", 80, 16, 24)]


def test_every_part_of_a_fused_layer_is_cut_by_itself():
    shards = shards_of(QKV, range(24), [8, 8, 8], [32, 32, 32], TensorParallelRank(3, 4))
    assert shards == [
        TensorParallelShard(0, range(24, 32), range(24)),
        TensorParallelShard(1, range(8, 16), range(24)),
        TensorParallelShard(2, range(8, 16), range(24)),
    ]


def test_a_record_of_several_parts_is_cut_in_all_of_them():
    fused = [LayerEntry("qkv_proj", 100, 64, 24)]
    whole = [32, 16, 16]
    assert rows_of(shards_of(fused, range(24), whole, whole, TensorParallelRank(0, 1))) == [
        list(range(64))
    ]
    halves = [
        shards_of(fused, range(24), [16, 8, 8], whole, TensorParallelRank(rank, 2))
        for rank in (0, 1)
    ]
    assert rows_of(halves[1]) == [
        list(range(16, 32)),
        list(range(40, 48)),
        list(range(56, 64)),
    ]
    assert sorted(sum(rows_of(halves[0]) + rows_of(halves[1]), [])) == list(range(64))


def test_parts_that_cannot_be_told_apart_are_refused():
    # two key-value heads on four processes: vLLM counts each of them twice
    with pytest.raises(NearplaneError, match="3 parts, .* where qkv_proj has 64"):
        shards_of(
            [LayerEntry("qkv_proj", 100, 64, 24)],
            range(24),
            [8, 8, 8],
            [32, 32, 32],
            TensorParallelRank(0, 4),
        )
    with pytest.raises(NearplaneError, match="a layer of 2 parts"):
        shards_of(QKV, range(24), [32, 32], [32, 32], TensorParallelRank(0, 1))


def test_a_shard_is_cut_from_its_record():
    from nearplane.codes import resident

    packed = pack_layer("x", torch.randn(12, 30, generator=torch.manual_seed(0)), 1)
    part = TensorParallelShard(0, range(3, 9), range(15, 30)).cut(packed.record)
    assert torch.equal(resident.value(part, "record", 6, 15), packed.value[3:9, 15:30])
