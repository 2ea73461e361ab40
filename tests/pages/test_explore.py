"""`nearplane explore` in a real browser: drags, keys, links, dark, print, phone, its numbers."""

import json
import math
import re

import pytest
import torch

from nearplane import lattice
from nearplane.pages import explore

STEPS = (
    *("lattice", "cells", "nearest-plane", "gptq", "order", "bound", "clipping", "steps"),
    *("rate", "reduction"),
)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("explore") / "explore.html"
    path.write_text(explore.page(), encoding="utf-8")
    return path


def found(page, expression):
    return page.evaluate(f"() => window.explore.found.{expression}")


def settled(page):
    """Wait until the page has followed its address and is drawn."""
    page.evaluate(
        "new Promise((done) => setTimeout(() => requestAnimationFrame(() => setTimeout(done))))"
    )


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, locator, dx, dy):
    x, y = middle(locator)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()
    settled(page)


def test_the_page_is_one_file_below_its_size(path):
    text = path.read_text()
    assert len(text) < 900_000
    assert text.count("</script>") == 3
    assert not re.search(r"(?:src|href)=[\"']?https?:", text)
    assert "{{" not in text.split("<script>")[0]


def test_every_step_is_a_link_and_readable(browser_page, serious_problems, path):
    """Light and dark by turns: axe finds nothing serious, and nothing is wider than a phone."""
    for scheme, options in (("light", {}), ("dark", PHONE)):
        page = browser_page(path, color_scheme=scheme, **options)
        for name in (*STEPS, "three"):
            page.evaluate(f"location.hash = '{name}'")
            settled(page)
            title = page.locator("h2:visible")
            assert title.count() == 1
            if options:
                assert page.evaluate("document.documentElement.scrollWidth") <= 390
            if scheme == "light" or name in ("clipping", "rate", "three"):
                assert serious_problems(page) == [], name
    titles = page.evaluate("[...document.querySelectorAll('#story-steps a')].map((a) => a.hash)")
    assert titles == [f"#{name}" for name in STEPS]


def test_the_address_opens_a_step_and_buttons_lead_on(browser_page, path):
    page = browser_page(path, "bound")
    assert "A bound before rounding" in page.inner_text("#title")
    page.click("#after")
    settled(page)
    assert "Clipping voids the bound" in page.inner_text("#title")
    assert page.evaluate("document.activeElement.id") == "title"
    page.click("#before")
    settled(page)
    assert page.url.endswith("#bound")


def test_on_a_phone_the_picture_stays_above_the_text(browser_page, path):
    page = browser_page(path, "bound", **PHONE)
    page.locator("#after").scroll_into_view_if_needed()
    page.click("#after")
    settled(page)
    picture = page.locator("#picture .stage").bounding_box()
    title = page.locator("#title").bounding_box()
    assert picture["y"] >= 0
    assert picture["y"] + picture["height"] <= title["y"] < 844 - title["height"]


def test_its_numbers_are_those_of_python(browser_page, path):
    page = browser_page(path, "gptq")
    drag(page, page.locator(".handle.target"), 61, -47)
    got = page.evaluate(
        "() => { const f = window.explore.found; return {state: f.state, hessian: f.hessian, "
        "codes: f.codes, losses: f.losses, bound: f.bound, best: f.trace.map((t) => t.best)}; }"
    )
    state = got["state"]
    hessian = torch.tensor(got["hessian"], dtype=torch.float64)
    weight = torch.tensor([state["weight"]], dtype=torch.float64)
    step = torch.tensor([state["step"]], dtype=torch.float64)
    order = torch.tensor([1, 0])
    columns = order.flip(0)
    factor = lattice.factor(hessian, order, 0.0)
    code = lattice.nearest_plane(weight[:, columns], factor, step)[:, columns.argsort()]
    assert got["codes"]["nearest-plane"] == code[0].tolist()
    assert lattice.gptq(weight, hessian, step, order, 0.0).tolist() == code.tolist()
    assert math.isclose(got["bound"], lattice.bound(factor, step), rel_tol=1e-12)
    error = weight - step * code
    loss = float((error @ hessian * error).sum())
    assert math.isclose(got["losses"]["nearest-plane"], loss, rel_tol=1e-12)
    # what is written is what was computed, digit by digit
    shown = page.locator("#numbers .digits").first.inner_text().replace("−", "-")
    assert float(shown) == pytest.approx(got["best"][0], rel=1e-15)
    assert f"loss {loss:.4f}" in page.inner_text("#said")


def test_nothing_leaves_the_box_until_integers_are_clipped(browser_page, path):
    page = browser_page(path, "bound")
    loss_share = "() => window.explore.found.losses['nearest-plane'] / window.explore.found.bound"
    for dx, dy in ((150, -120), (-260, 40), (90, 200)):
        drag(page, page.locator(".handle.target"), dx, dy)
        assert page.evaluate(loss_share) <= 1
        assert page.locator(".box.left").count() == page.locator(".beyond").count() == 0
    page.click("text=To a corner of the box")
    settled(page)
    assert page.evaluate(loss_share) == pytest.approx(1, abs=1e-3)
    page.evaluate("location.hash = 'clipping'")
    page.wait_for_selector(".box.left")
    assert page.evaluate(loss_share) > 1
    assert "void" in page.inner_text("#said")
    page.click("text=In range, and clipped all the same")
    settled(page)
    state = found(page, "state")
    assert all(-2.5 < w < 1.5 for w in state["weight"]) and page.evaluate(loss_share) > 1
    page.click("text=Take the limits away")
    page.wait_for_selector(".box.left", state="detached")
    assert page.evaluate(loss_share) <= 1


# where each word is explained; no step before it may use it
EXPLAINED = {
    "bound": "bound",
    "other order": "order",
    "clip": "clipping",
    "rate-aware": "rate",
    "ν": "rate",
    "reduced": "reduction",
}
SHOWN = """() => ["text", "said", "numbers", "legend", "controls"].map((id) => {
  const copy = document.getElementById(id).cloneNode(true);
  for (const hidden of copy.querySelectorAll("option[hidden]")) hidden.remove();
  return copy.textContent;
}).join(" ").toLowerCase()"""


def test_no_step_uses_a_word_before_the_step_that_explains_it(browser_page, path):
    page = browser_page(path, "reduction")
    seen = {}
    for name in STEPS[::-1]:  # what later steps had set must not stay
        page.evaluate(f"location.hash = '{name}'")
        settled(page)
        seen[name] = page.evaluate(SHOWN)
    for word, step in EXPLAINED.items():
        assert word in seen[step]
        early = [name for name in STEPS[: STEPS.index(step)] if word in seen[name]]
        assert not early, f"{word!r} in {early}"


def test_hatched_targets_are_those_that_are_clipped(browser_page, path):
    page = browser_page(path, "clipping")
    settled(page)
    low, high = found(page, "state.low"), found(page, "state.high")
    hessian = torch.tensor(found(page, "hessian"), dtype=torch.float64)
    factor = lattice.factor(hessian, torch.tensor([1, 0]), 0.0)
    step = torch.ones(1, 2, dtype=torch.float64)

    def leaves_its_box(weight):
        code = lattice.nearest_plane(weight, factor, step, low, high)
        residual = (weight - code) @ factor.T
        return (residual.abs() > factor.diagonal() / 2 * (1 + 1e-9)).any(1)

    # one of four lines across the picture is drawn in the hatch's colour
    seen = [each for each in page.evaluate(PIXELS) if each["stripe"]]
    hatch = page.evaluate("getComputedStyle(document.body).getPropertyValue('--clipped').trim()")
    colour = ",".join(str(int(hatch[k : k + 2], 16)) for k in (1, 3, 5))
    weight = torch.tensor([each["weight"] for each in seen], dtype=torch.float64)
    hatched = torch.tensor([each["colour"] == colour for each in seen])
    assert len(seen) > 500 and 0.2 < hatched.double().mean() < 0.9
    assert torch.equal(hatched, leaves_its_box(weight))
    # how many of those in range are clipped all the same
    axis = low - 0.5 + (high - low + 1) * (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    share = 100 * leaves_its_box(torch.cartesian_prod(axis, axis)).double().mean()
    assert f" {share:.0f} % are clipped all the same" in page.inner_text("#numbers")
    assert "needs the integer 3 and gets 1" in page.inner_text("#said")


def test_arrows_are_dragged_and_everything_has_keys(browser_page, path):
    page = browser_page(path, "lattice")
    before = found(page, "hessian")
    x, y = middle(page.locator(".tip").first)
    drag(page, page.locator(".tip").first, 40, 30)
    assert middle(page.locator(".tip").first) == pytest.approx((x + 40, y + 30), abs=1)
    dragged = found(page, "hessian")
    assert dragged != before
    # the other arrow stays where it was: H₂₂ is its squared length
    assert dragged[1][1] == pytest.approx(before[1][1], rel=1e-9)
    weight = found(page, "state.weight")
    page.locator(".handle.target").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowUp")
    assert found(page, "state.weight") != weight
    page.locator(".tip").nth(1).focus()
    page.keyboard.press("ArrowLeft")
    assert found(page, "hessian[1][1]") != dragged[1][1]
    page.get_by_label("larger eigenvalue").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_label("weight 1").fill("1.25")
    page.keyboard.press("Enter")
    assert found(page, "state.weight[0]") == 1.25
    page.keyboard.press("Tab")


def test_touch_moves_the_target(browser_page, path):
    page = browser_page(path, "bound", **PHONE)
    x, y = middle(page.locator(".handle.target"))
    before = found(page, "state.weight")
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + 30, "y": y - 30}]),
        ("touchMove", [{"x": x + 60, "y": y - 40}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert found(page, "state.weight") != before


@pytest.mark.parametrize("method", ["nearest", "nearest-plane"])
def test_cells_are_what_python_returns(browser_page, path, method):
    """Every pixel's colour is that of the point which Python rounds its place to."""
    page = browser_page(path, "cells")
    page.evaluate(f"explore.set({{method: '{method}'}})")
    settled(page)
    seen = page.evaluate(PIXELS)
    weight = torch.tensor([each["weight"] for each in seen], dtype=torch.float64)
    hessian = torch.tensor(found(page, "hessian"), dtype=torch.float64)
    if method == "nearest":
        code = weight.round()
    else:
        factor = lattice.factor(hessian, torch.tensor([1, 0]), 0.0)
        code = lattice.nearest_plane(weight, factor, torch.ones(1, 2, dtype=torch.float64)).double()
    chosen = torch.tensor(found(page, f"codes['{method}']"), dtype=torch.float64)
    colours = {}
    for z, each in zip(code, seen, strict=True):
        kind = (*(z % 2).tolist(), bool((z == chosen).all()))
        colours.setdefault(kind, set()).add(each["colour"])
    assert len(seen) > 1500 and len(colours) == 5
    assert all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) == 5


# colour and weights of a grid of pixels, one pixel of the page each
PIXELS = """() => {
  const canvas = document.querySelector("#picture canvas");
  const {width, height} = canvas, found = [];
  const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
  for (let y = 3; y < height; y += 5) for (let x = 3; x < width; x += 5) {
    const at = 4 * (y * width + x);
    const stripe = (x + y) % 8 < 2;
    const weight = explore.weightAtPixel(x, y);
    found.push({stripe, weight, colour: data.slice(at, at + 3).join()});
  }
  return found;
}"""


def test_space_shows_the_same_numbers(browser_page, path):
    page = browser_page(path, "three")
    page.wait_for_selector("#view-three canvas")
    assert "integers (0, −1, 0)" in page.inner_text("#view-three figcaption")
    before = page.locator("#view-three .stage").screenshot()
    page.locator("#view-three .stage").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#view-three .stage").screenshot() != before
    page.get_by_label("Rounded first to last").select_option("natural")
    page.get_by_label("correlation of 1 and 2").fill("-0.98")
    assert "No inputs go together" in page.inner_text("#view-three figcaption")


def test_print_shows_picture_and_numbers_alone(browser_page, path):
    page = browser_page(path, "clipping", color_scheme="dark")
    page.emulate_media(media="print")
    assert (
        not page.locator("#controls").is_visible() and not page.locator("#story-steps").is_visible()
    )
    assert page.locator("#picture svg").is_visible() and page.locator("#numbers").is_visible()
    white = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert white == "rgb(255, 255, 255)"
    # the picture is drawn anew, light and as large as it is printed, and again as it was
    page.emulate_media(media="screen")
    for event, dark in (("beforeprint", False), ("afterprint", True)):
        page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
        width, height, red = page.evaluate(CORNER)
        assert (red < 128) == dark
        box = page.locator("#picture .stage").bounding_box()
        assert width / height == pytest.approx(box["width"] / box["height"], abs=0.02)


# size of the picture's canvas, and how red the colour of the first cell is
CORNER = """() => {
  const canvas = document.querySelector("#picture canvas");
  return [canvas.width, canvas.height, canvas.getContext("2d").getImageData(4, 4, 1, 1).data[0]];
}"""


def test_json_cannot_end_its_element():
    made = explore.page({"layer": "</script><script>alert(1)"})
    data = re.search(r'id="layer-data">(.*?)</script>', made)
    assert json.loads(data[1]) == {"layer": "</script><script>alert(1)"}
