"""Errors planted in the leaves in Triton: what is compared with the references notices each."""

import importlib.util
from unittest.mock import patch

import pytest
import torch

from tests.kernels.gpu.interpreted import only_here

only_here()

from nearplane.kernels.gpu import k_best  # noqa: E402
from nearplane.kernels.gpu.portable import beam, leaf, start  # noqa: E402
from nearplane.lattice import Levels  # noqa: E402
from nearplane.lattice import search as lattice_search  # noqa: E402
from tests.kernels.gpu.rounding_cases import (  # noqa: E402
    halves_agree,
    levels_agree,
    outliers_agree,
    searches_agree,
    ties_agree,
)


def levels() -> None:
    levels_agree(5, 9, Levels.of((-4, -1, 0, 2, 3), torch.empty(0, dtype=torch.float64)))


def outliers() -> None:
    outliers_agree(5, 9)


def search() -> None:
    """Several leaves of four columns; three paths of four places."""
    with patch.object(k_best, "LEAF", 4), patch.object(lattice_search, "LEAF", 4):
        searches_agree(3, 11, 3, 2)


PLANTED = [
    (leaf, "LEVELS >> halved > 0", "LEVELS >> halved > 1", levels),
    (leaf, "probe < count", "probe + 1 < count", levels),
    (leaf, "x > middle", "x >= middle", halves_agree),
    (leaf, "nearest += cut_off.to(nearest.dtype)", "nearest += 0", outliers),
    (leaf, "tl.minimum(tl.maximum(cut_off, -65504.0), 65504.0)", "cut_off", outliers),
    (leaf, "beyond.to(tl.uint8)", "(cut_off > 0).to(tl.uint8)", outliers),
    (beam, "mask=k < end - first, other=0", "mask=k + 1 < end - first, other=0", search),
    (beam, "ahead(low, high, not_later)", "ahead(low, high, earlier)", ties_agree),
    (beam, "(first == second) & earlier", "(first == second) & (earlier == 0)", ties_agree),
    (beam, "from_path = tl.gather(from_path, continued, 1)", "", search),
    (beam, "errors = tl.gather(errors, for_all, 2)", "", search),
    (beam, "codes = tl.gather(codes, for_all, 2)", "", search),
    (beam, "tl.store(cost + on_path, costs, mask=there)", "", search),
    (beam, 'costs = tl.where((path < PATHS)[None, :], costs, float("inf"))', "", search),
    (beam, "tl.maximum(upper, -span), span)", "tl.maximum(upper, -span), span - 1)", search),
    (beam, "tl.load(column_cost + column)", "tl.load(column_cost + first)", search),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: each[1][:40])
def test_a_planted_error_is_noticed(planted, monkeypatch, tmp_path):
    module, right, wrong, agree = planted
    with open(module.__file__) as file:
        text = file.read()
    assert text.count(right) == 1, f"{right!r} is not once in {module.__name__}"
    path = tmp_path / "planted.py"
    path.write_text(text.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("planted", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    name = module.__name__.rpartition(".")[2].replace("beam", "search")
    kernels = start.kernels() | {name: vars(made)[name]}
    monkeypatch.setattr(start, "kernels", lambda: kernels)
    with pytest.raises(AssertionError):
        agree()
