"""The worked examples of docs/formats are what the code writes and reads."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nearplane.codes import Dense, Huffman, Rans, record, sparse
from nearplane.codes.dense import pack_bits
from tests.codes import slow

FORMATS = Path(__file__).parents[2] / "docs" / "formats"


def example(document: str, name: str) -> bytes:
    """Return the bytes of the block ```hex name, without its comments."""
    text = (FORMATS / f"{document}.md").read_text(encoding="utf-8")
    block = re.search(rf"```hex {name}\n(.*?)```", text, re.DOTALL)[1]
    return bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))


def test_packed_fields():
    assert pack_bits(np.array([0, 7, 4, 5, 3]), 3) == example("dense", "packed")


def test_dense():
    integers = np.array([[-4, 3, 0, 1, -1]], np.int32)
    assert Dense(3).encode(integers) == example("dense", "dense")


def test_huffman():
    text = (FORMATS / "huffman.md").read_text(encoding="utf-8")
    listed = re.search(r"The 32 integers ([-−\d ]+)\.", text)[1].replace("−", "-")
    integers = np.array([listed.split()], np.int32)
    assert integers.shape == (1, 32)
    assert Huffman().encode(integers) == example("huffman", "huffman")
    assert slow.huffman(example("huffman", "huffman"), 1, 32) == integers[0].tolist()


@pytest.mark.parametrize("name", ["listed", "shaped"])
def test_rans(name):
    text = (FORMATS / "rans.md").read_text(encoding="utf-8")
    lines = re.search(rf"```integers {name}\n(.*?)```", text, re.DOTALL)[1].splitlines()
    integers = np.array([line.split() for line in lines], np.int32)
    data = example("rans", name)
    assert slow.rans(data, *integers.shape) == integers.reshape(-1).tolist()
    assert Rans().encode(integers) == data
    assert np.array_equal(Rans().decode(data, *integers.shape)[0], integers)


def test_sparse():
    start, column = np.array([0, 2, 2, 3], np.int32), np.array([1, 6, 4], np.int32)
    rows = sparse.SparseRows(start, column, np.array([0.5, -2, 1], np.float16))
    assert sparse.encode(rows, 7) == example("sparse", "sparse")


def test_gaps():
    start = np.searchsorted([1, 5, 40], np.arange(81)).astype(np.int32)
    column, value = np.array([1, 99, 0], np.int32), np.array([0.5, -2, 1], np.float16)
    data = sparse.encode(sparse.SparseRows(start, column, value), 100)
    assert data == example("sparse", "gaps")
    read = slow.sparse(data, 80, 100)
    assert (read[1], read[5], read[40]) == ({1: 0.5}, {99: -2.0}, {0: 1.0})


def test_record():
    code = torch.tensor([[0, 1, -1], [2, 0, 0]], dtype=torch.int32)
    step = torch.tensor([[0.5, 0.25, 0.125]])
    packed, _ = record.pack(code, step, 3, None, Dense(3))
    assert bytes(packed.numpy()) == example("record", "record")
    assert slow.record(bytes(packed.numpy())) == (code * step).tolist()
