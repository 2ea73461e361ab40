"""The page in a browser: charts are drawn, the table sorts and filters, no complaints."""

import json
import re

import pytest

from nearplane.report.compare_page import Named, compare_page
from nearplane.report.reading import checked_run
from nearplane.report.report_page import report_page
from tests.pages import reports

CHARTS = ("worst", "hurt", "errors", "parts", "rates", "sensitivity", "averages", "pivots")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function that writes the page of a report, once for equal ones."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name, content):
        path = folder / f"{name}.html"
        if not path.exists():
            run = checked_run(json.loads(json.dumps(content)), "report.json")
            path.write_bytes(report_page(run, "out"))
        return path

    return write


def plain():
    entries = reports.layers(4)
    void = {"bound": None, "void": "clipped codes void the bound", "facts": {}}
    entries[5] = reports.layer(entries[5].name, 5, (96, 64), **void)
    figures = {"kl": {"value": 0.05, "low": 0.04, "high": 0.06}}
    return reports.report(entries, evaluations=[{"kind": "text", "figures": figures}])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn(browser_page, serious_problems, written, scheme):
    page = browser_page(written("plain", plain()), color_scheme=scheme)
    for name in CHARTS:
        assert page.locator(f"#chart-{name} svg").first.is_visible(), name
    assert serious_problems(page) == []


def test_charts_show_the_reports_numbers_on_hover(browser_page, written):
    content = plain()
    page = browser_page(written("plain", content))
    worst = max(content["layers"], key=lambda entry: entry["relative_loss"] or 0)
    bar = page.locator("#chart-worst rect").first
    bar.scroll_into_view_if_needed()
    bar.hover()
    tip = page.locator("#chart-worst g[aria-label=tip]")
    said = tip.text_content()
    assert worst["name"] in said
    assert float(re.search(r"relative error ([\d.e-]+)", said)[1]) == pytest.approx(
        worst["relative_loss"], rel=1e-3
    )


def test_the_table_sorts_and_filters(browser_page, written):
    content = plain()
    page = browser_page(written("plain", content))
    names = page.locator("#layers tbody th")
    assert names.all_inner_texts() == [entry["name"] for entry in content["layers"]]
    page.get_by_role("button", name="relative error").click()
    known = [entry for entry in content["layers"] if entry["relative_loss"] is not None]
    falling = sorted(known, key=lambda entry: -entry["relative_loss"])
    assert names.first.inner_text() == falling[0]["name"]
    assert page.locator("th[aria-sort=descending]").inner_text() == "relative error"
    page.get_by_role("button", name="relative error").click()
    assert names.first.inner_text() == falling[-1]["name"]
    page.get_by_label("Name contains").fill("DOWN_proj")
    assert names.count() == 4 and "4 of 13 layers" in page.locator("#count").inner_text()
    page.get_by_label("Name contains").fill("")
    page.get_by_label("with warnings only").check()
    assert names.all_inner_texts() == [content["layers"][5]["name"]]


def test_a_phone_scrolls_in_one_direction(browser_page, written):
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    page = browser_page(written("plain", plain()), **phone)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_without_javascript_the_tables_are_there(browser_page, written):
    content = plain()
    page = browser_page(written("plain", content), java_script_enabled=False)
    assert page.locator("#layers tbody tr").count() == len(content["layers"])
    assert page.locator("figure:visible").count() == 0
    assert page.get_by_text("Charts need JavaScript").is_visible()


def test_names_of_strangers_do_not_run(browser_page, written):
    entries = [reports.layer(f"m.{i}.{reports.HOSTILE}", i, (8, 8)) for i in range(3)]
    page = browser_page(written("hostile", reports.report(entries)))
    assert page.locator("#layers tbody th").first.inner_text() == entries[0].name
    assert page.locator("#chart-worst svg").is_visible()


def test_runs_side_by_side(browser_page, serious_problems, tmp_path):
    entries = [reports.layer(f"m.{i}.{reports.HOSTILE}", i, (8, 8)) for i in range(3)]
    contents = {"a": reports.report(entries), "b": plain(), "c": reports.report(reports.layers(4))}
    runs = [Named(name, checked_run(content, name)) for name, content in contents.items()]
    (tmp_path / "compare.html").write_bytes(compare_page(runs))
    page = browser_page(tmp_path / "compare.html", color_scheme="dark")
    for name in ("sizes", "errors", "rates"):
        assert page.locator(f"#chart-{name} svg").first.is_visible(), name
    row = page.locator("#totals tr", has_text="bits per weight").locator("td").all_inner_texts()
    assert row == [f"{each.run.bpw:.3f}" for each in runs]
    assert serious_problems(page) == []


def test_twenty_thousand_layers_can_be_used(browser_page, written):
    entries = reports.layers(26, experts=384)
    mixtures = [f"model.layers.{block}.mlp.experts" for block in range(26)]
    experts = {name: {str(i): i * 7 % 50 for i in range(384)} for name in mixtures}
    content = reports.report(entries, experts=experts)
    assert len(entries) > 19_900
    page = browser_page(written("large", content))
    assert page.evaluate("performance.now()") < 20_000  # on a busy machine
    assert page.locator("#chart-experts svg").is_visible()
    assert page.evaluate("document.querySelectorAll('svg *').length") < 40_000
    page.get_by_role("button", name="tokens").click()
    page.get_by_label("Name contains").fill("experts.383.down_proj")
    assert page.locator("#layers tbody tr").count() == 26


def test_it_prints_in_black_on_white(browser_page, written):
    page = browser_page(written("plain", plain()), color_scheme="dark")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)" and not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_on_a_phone_no_table_of_the_worst_layers_is_cut(browser_page, written):
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    entries = [
        reports.layer(f"model.layers.{i}.self_attn.q_proj", i, (64, 64)) for i in range(10, 30)
    ]
    page = browser_page(written("phone", reports.report(entries)), **phone)
    table = page.locator("#lost table").bounding_box()
    assert table["x"] >= 0 and table["x"] + table["width"] <= 390
    outside = page.evaluate(OUTSIDE)
    assert outside == [], "texts of charts that are cut"


# texts of charts that lie beyond the page's sides
OUTSIDE = """() => [...document.querySelectorAll("main svg text")].filter((text) => {
  const {left, right, width} = text.getBoundingClientRect();
  return width > 0 && (left < -0.5 || right > 390.5);
}).map((text) => text.textContent)"""
