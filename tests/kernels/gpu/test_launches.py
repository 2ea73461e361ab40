"""How many operations a rounding starts on a GPU, counted without one (bench/gpu_launches.py)."""

import pytest

from bench import gpu_launches

ROWS = 4096
# most operations that 32 columns more take: a leaf and a product; K-best renumbers paths, too
MOST = {
    "hptq": 2,
    "gptq": 2,
    "ssqr": 2,
    "gguf": 2,
    "eclq, rows by themselves": 2,
    "eclq": 2 * 32,  # parts of the output Hessian's blocks, one after the other
    "eclq, 8 paths, rows by themselves": 10,
}


@pytest.mark.parametrize("name", MOST)
def test_a_leaf_is_one_launch(name):
    """And nothing is read back between two: the tensors hold no numbers."""
    narrow, wide = (gpu_launches.roundings(ROWS, n)[name] for n in (64, 128))
    assert gpu_launches.count(wide) - gpu_launches.count(narrow) <= 2 * MOST[name]


def test_pieces_and_blocks_of_rows_are_rounded_together():
    """Four times the rows take little more, however the output Hessian is cut into blocks."""
    for name, most in (("ssqr", 1), ("eclq", 1.6)):
        few, many = (gpu_launches.roundings(rows, 256)[name] for rows in (ROWS, 4 * ROWS))
        assert gpu_launches.count(many) <= most * gpu_launches.count(few)


def test_a_column_of_watersic_waits_for_nothing():
    narrow, wide = (gpu_launches.roundings(ROWS, n)["watersic"] for n in (64, 96))
    assert gpu_launches.count(wide) - gpu_launches.count(narrow) <= 32 * 14


def test_searches_for_steps_take_whole_matrices():
    few, many = (gpu_launches.searches(rows, 256) for rows in (512, ROWS))
    for name, work in few.items():
        assert gpu_launches.count(work) == gpu_launches.count(many[name])
