"""Sections of a row's lattice: the box is where the whole row keeps its integers."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.pages import explore
from nearplane.pages.layer_section import Row, sections
from nearplane.types import NearplaneError
from tests.problem import problem, steps

N = 6


def rounded_row(seed, order="activation", limits=(None, None)):
    """Return a row as nearest plane rounds it, its weight and its Hessian."""
    made = problem(seed, 1, N, condition=100)
    step = steps(seed, 1, N, "column")[0]
    basis = lattice.basis(made.hessian, order, 0.01)
    code = nearest(made.weight[0], basis, step, limits)
    row = Row(code, step, step * code, torch.zeros(N, dtype=torch.bool), limits, 0.01, order)
    return row, made.weight[0], made.hessian, basis


def nearest(weight, basis, step, limits=(None, None)):
    columns = basis.columns
    target, steps_ = weight[None, columns], step[None, columns]
    code = lattice.nearest_plane(target, basis.factor, steps_, *limits)[0].long()
    return code[columns.argsort()]


def exact(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def moved(weight, section, corner, share):
    """Return the weight whose two columns lie a share of the way from the target to a corner."""
    way = exact(corner) - exact(section["target"])
    weight = weight.clone()
    weight[list(section["pair"])] += share * way
    return weight


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(lattice.ORDERS))
def test_the_box_is_where_the_row_keeps_its_integers(seed, order):
    row, weight, hessian, basis = rounded_row(seed, order)
    found = sections(row, weight, hessian, None)
    assert found["same"] == N
    for section in found["sections"]:
        assert section["outside"] == 0 and len(section["box"]) >= 3
        for corner in section["box"]:
            inside = moved(weight, section, corner, 1 - 1e-6)
            outside = moved(weight, section, corner, 1 + 1e-6)
            assert torch.equal(nearest(inside, basis, row.step), row.code)
            assert not torch.equal(nearest(outside, basis, row.step), row.code)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_the_section_has_the_loss_of_the_row_up_to_a_constant(seed):
    row, weight, hessian, basis = rounded_row(seed)
    damped = lattice.damp(hessian, basis.damping)
    for section in sections(row, weight, hessian, (3, 1))["sections"]:
        pair = list(section["pair"])
        target, step = exact(section["target"]), exact(section["step"])
        differences = []
        for move in ((0, 0), (1, 0), (-2, 3)):
            code = row.code.clone()
            code[pair] += torch.tensor(move)
            error = weight - row.step * code
            within = target - step * code[pair]
            part = within @ exact(section["hessian"]) @ within
            differences.append(float(error @ damped @ error - part))
        assert max(differences) - min(differences) <= 1e-10 * max(1, abs(differences[0]))


def test_the_wanted_columns_come_first_and_are_checked():
    row, weight, hessian, _ = rounded_row(1)
    assert sections(row, weight, hessian, (4, 2))["sections"][0]["pair"] == (4, 2)
    for wrong in ((1, 1), (0, N)):
        with pytest.raises(NearplaneError, match="two different"):
            sections(row, weight, hessian, wrong)


def test_a_clipped_row_is_out_of_its_box():
    row, weight, hessian, _ = rounded_row(3, limits=(0, 0))
    found = sections(row, weight, hessian, None)
    assert found["same"] == N and found["damped_loss"] > found["bound"]
    assert any(section["outside"] for section in found["sections"])


@pytest.fixture
def layer():
    row, weight, hessian, _ = rounded_row(5)
    said = {"name": "model.layers.0.mlp.up_proj", "row": 7, "text": "text.txt", "tokens": 64}
    said |= {"model": "model", "checkpoint": "out", "method": "hptq", "void": ""}
    return said | {"layer_loss": 1.0, "layer_bound": 3.0} | sections(row, weight, hessian, None)


def test_the_page_shows_it(browser_page, serious_problems, tmp_path, layer):
    path = tmp_path / "page.html"
    path.write_text(explore.page(layer), encoding="utf-8")
    data = re.search(r'id="layer-data">(.*?)</script>', path.read_text())
    assert json.loads(data[1])["row"] == 7
    page = browser_page(path, "layer", color_scheme="dark")
    assert "up_proj, row 7" in page.inner_text("#view-layer h2")
    section = layer["sections"][1]
    page.get_by_label("Pair of columns").select_option(index=1)
    said = ", ".join(str(z).replace("-", "−") for z in section["code"])
    assert f"stored integers ({said})" in page.inner_text("#view-layer figcaption")
    assert page.locator("#view-layer .box").count() == 1
    assert serious_problems(page) == []
