"""The page of a report: its numbers are those of report.json, and no name becomes code."""

import copy
import html
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.report.compare_page import Named, compare_page, warnings
from nearplane.report.findings import advice
from nearplane.report.findings import warnings as run_warnings
from nearplane.report.layer_lines import expected_loss, kinds_of, natural
from nearplane.report.reading import checked_run, read_report
from nearplane.report.report_page import SHOWN_ROWS, report_page
from nearplane.types import NearplaneError
from tests.pages import reports


class Page(HTMLParser):
    """What a browser makes of a page: tables by their id or caption, scripts, attributes."""

    def __init__(self, page: bytes):
        super().__init__()
        self.tables, self.scripts, self.tags, self.inside = [], [], [], ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.inside == "script":
            self.scripts[-1] += data

    def table(self, title: str) -> list[list[str]]:
        """Return the rows of the table whose first column is titled so and whose rows differ."""
        return next(rows for rows in self.tables if title in rows[0])


def page_of(content) -> bytes:
    return report_page(checked_run(json.loads(json.dumps(content)), "report.json"), "out")


def test_numbers_are_those_of_the_report():
    content = reports.report(reports.layers(4))
    page = Page(page_of(content))
    rows = {row[0]: row for row in page.table("shape")[1:]}
    data = json.loads(page.scripts[0])
    assert list(rows) == [entry["name"] for entry in content["layers"]] == data["layers"]["name"]
    for place, entry in enumerate(content["layers"]):
        row = rows[entry["name"]]
        assert row[1] == f"{entry['rows']}×{entry['columns']}"
        assert float(row[2]) == entry["bpw"] == data["layers"]["bpw"][place]
        assert int(row[3].replace(",", "")) == entry["stored_bytes"]
        for column, key in ((4, "relative_loss"), (7, "relative_bound"), (8, "loss_over_bound")):
            assert float(row[column]) == pytest.approx(
                entry[key], rel=6e-3, abs=6e-4 * (column == 8)
            )
        assert data["layers"]["relative_loss"][place] == entry["relative_loss"]
        assert data["layers"]["bound"][place] == pytest.approx(entry["relative_bound"], rel=1e-6)
    parts = {row[0]: row for row in page.table("part")[1:]}
    assert int(parts["embed_tokens"][2].replace(",", "")) == content["layers"][0]["stored_bytes"]
    assert parts["model.layers.*.input_layernorm.weight"][2] == "128"
    worst = max(content["layers"], key=lambda entry: entry["relative_loss"])
    first = page.table("of its bound")[1]
    assert first[0] == worst["name"] and first[2] == f"{worst['bpw']:.3f}"
    for column, key in ((1, "relative_loss"), (3, "loss_over_bound")):
        assert float(first[column].removesuffix(" %")) == pytest.approx(100 * worst[key], rel=6e-3)
    said = advice(checked_run(content, ""), "out")
    assert said.hurts.startswith(f"{worst['name']} lost most: ")


def test_half_a_bit_more_is_what_the_run_itself_expects():
    content = reports.report(reports.layers(2))
    said = advice(checked_run(content, ""), "out").helps
    total = content["recipe"]["predicted_kl"]
    assert f"from {total:.3g} to {total / 2:.3g} nats" in said
    older = {k: v for k, v in content.items() if k not in ("sensitivity", "machine", "kept")}
    assert advice(checked_run(older, ""), "out").helps == said  # 4^(-1/2), the same model
    assert b"What this report lacks" in page_of(older)


def test_names_of_strangers_stay_text():
    entries = [reports.layer(f"model.layers.{i}.{reports.HOSTILE}", i, (8, 8)) for i in range(3)]
    content = reports.report(entries, model=f"$(rm) {reports.HOSTILE}")
    content["left_out"] = [reports.HOSTILE]
    content["recipe"]["source"] = reports.HOSTILE
    content["experts"] = {reports.HOSTILE: {reports.HOSTILE: 3}}
    content["evaluations"] = [
        {"text": reports.HOSTILE, "figures": {reports.HOSTILE: {"value": 1.0}}}
    ]
    harmless = Page(page_of(reports.report(reports.layers(1))))
    raw = page_of(content)
    page = Page(raw)
    assert page.scripts[1:] == harmless.scripts[1:]
    assert json.loads(page.scripts[0])["layers"]["name"][0] == entries[0].name
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags} | {"ul", "li"}
    assert b"<script>alert" not in raw and b"'$(rm) " in raw.replace(b"&#39;", b"'")
    policy = dict(page.tags)["meta"]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert policy


def test_the_page_asks_for_nothing():
    page = Page(page_of(reports.report(reports.layers(1))))
    assert all("src" not in attributes for _, attributes in page.tags)
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links and all(link.startswith("#") for link in links)
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'") and "unsafe-eval" not in policies[0]


def test_sizes_of_large_models():
    assert len(page_of(reports.report(reports.layers(166)))) < 1_000_000  # 499 layers
    content = reports.report(reports.layers(8, experts=100))
    page = Page(page_of(content))
    assert len(page.table("shape")) == SHOWN_ROWS + 1 < len(content["layers"])
    worst = max(content["layers"], key=lambda entry: entry["relative_loss"])
    assert page.table("shape")[1][0] == worst["name"]


def test_what_was_measured_is_shown():
    page = page_of(SOUND).decode()
    rows = Page(page.encode()).table("interval")[1:]
    assert ["held.txt", "perplexity", "11.5", "11 to 12", "org/model"] in rows
    assert "not measured" not in page and advice(checked_run(SOUND, ""), "out").command.startswith(
        "nearplane quantize org/model larger --bpw"
    )


def test_everything_that_fell_back_is_in_the_warnings():
    entries = reports.layers(2)
    changed = {"bound": None, "void": "rounded to nearest: no token", "fallback": "no token"}
    entries[1] = reports.layer(entries[1].name, 1, (64, 64), **changed)
    content = reports.report(entries, fallbacks=[entries[1].name], left_out=["visual stays"])
    page = page_of(content).decode()
    warnings = re.search(r'id="warnings">.*?</section>', page, re.DOTALL)[0]
    assert (
        "visual stays" in warnings and entries[1].name in warnings and "no bound for 1" in warnings
    )
    rows = {row[0]: row for row in Page(page.encode()).table("shape")[1:]}
    assert "no token" in rows[entries[1].name][-1] and rows[entries[1].name][4] == "–"


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([10**400, -1, 0, 1e308, "\ud800", "</script>", [], {}, [None], {"a": "b"}]),
    st.text(max_size=5),
)


def places(value, path=()):
    """Yield the path of everything inside of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


FIGURES = {"perplexity": {"value": 11.5, "low": 11.0, "high": 12.0}, "kl": {"value": 0.083}}
EVALUATION = {"kind": "text", "text": "held.txt", "against": "org/model", "figures": FIGURES}
SOUND = reports.report(reports.layers(1), evaluations=[EVALUATION])
PLACES = list(places(SOUND))


@settings(max_examples=150)
@given(st.sampled_from(PLACES), ODD)
def test_a_damaged_report_gives_one_sentence_or_a_page(path, odd):
    content = copy.deepcopy(SOUND)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = odd
    try:
        assert report_page(checked_run(content, "report.json"), "out").startswith(b"<!doctype")
    except NearplaneError as error:
        assert str(error).startswith("report.json") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "lists no layers"),
        ('{"layers": [0], "bits": {"other_bytes": NaN}}', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"report_version": 2, "layers": [0]}', "newer nearplane"),
        ("\xff", "is no JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, said):
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(NearplaneError, match=said):
        read_report(tmp_path)


def test_kinds_are_what_blocks_have_in_common():
    names = ["model.embed_tokens", "model.layers.3.mlp.fc2", "model.layers.3.mlp.experts.17.up"]
    assert list(kinds_of(names).values()) == ["embed_tokens", "mlp.fc2", "mlp.experts.*.up"]
    towers = ["vision.layers.0.fc1", "model.layers.0.fc1"]
    assert list(kinds_of(towers).values()) == ["vision.layers.*.fc1", "model.layers.*.fc1"]
    assert sorted(["a.10", "a.2", "a.b", "a.1"], key=natural) == ["a.1", "a.2", "a.10", "a.b"]


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_the_expected_error_is_between_the_targets_own_and_the_bound(bound, aside):
    """Of uniform errors around a target: a third of the bound where the target is the weight."""
    around = (bound**0.5 + aside**0.5) ** 2
    expected = expected_loss({"bound": around, "facts": {"aside": aside}})
    assert aside + bound / 3 == pytest.approx(expected, abs=1e-9 * (1 + around))
    assert aside <= expected + 1e-9 and expected <= around + 1e-9
    assert expected_loss({"bound": None}) is None


def compared(changes):
    """Return two runs, the second with other fields of its calibration and its evaluation."""
    first, second = ({"fingerprint": "a" * 64}, {"tokens_sha256": "b" * 64}), changes
    runs = []
    for name, (calibration, evaluation) in zip("ab", (first, second), strict=True):
        content = reports.report(reports.layers(2))
        content["recipe"]["calibration"] |= calibration
        figures = {"perplexity": {"value": 11.5}}
        text = {"kind": "text", "text": f"{name}.txt", "windows": 6, "context": 512}
        content["evaluations"] = [text | {"figures": figures} | evaluation]
        runs.append(Named(name, checked_run(json.loads(json.dumps(content)), name)))
    return runs


def test_what_is_said_of_many_layers_is_one_warning_behind_the_bounds():
    entries = reports.layers(2)
    void = {"bound": None, "void": "clipped codes void the bound of 2 of 64 rows", "facts": {}}
    entries[1] = reports.layer(entries[1].name, 1, (64, 64), **void)
    skipped = [f"model.layers.{i}.mlp.up_proj is skipped as asked" for i in range(2, 30)]
    others = ["lm_head is no linear layer", "rows of x stay"]
    content = reports.report(entries, left_out=[*skipped, *others])
    found = list(run_warnings(checked_run(json.loads(json.dumps(content)), "report.json")))
    assert len(found) == 4 and "clipped codes void the bound of 2 of 64 rows" in found[0]
    assert found[1].startswith("28 layers, each of which is skipped as asked: model.layers.2.mlp")
    assert found[1].endswith("and 23 more") and found[2:] == others


@pytest.mark.parametrize(
    "calibration, evaluation, said",
    [
        ("a", "b", []),
        ("c", "b", ["calibrated on different tokens (a: 8 x 512 of notes.txt; b: 8 x 512"]),
        ("a", "c", ["measured on different texts (a: 6 x 512 of a.txt; b: 6 x 512 of b.txt)"]),
        (None, "b", ["calibration tokens are not known of b"]),
    ],
)
def test_what_does_not_compare_is_said(calibration, evaluation, said):
    repeated = calibration and calibration * 64
    runs = compared(({"fingerprint": repeated}, {"tokens_sha256": evaluation * 64}))
    found = warnings(runs)
    assert len(found) == len(said)
    page = compare_page(runs).decode()
    for sentence, start in zip(found, said, strict=True):
        assert sentence.startswith(start) and sentence in html.unescape(page)
    marked = re.findall(r'<tr class="warned"><th scope="row">([^<]*)', page)
    assert ("calibration tokens, SHA-256" in marked) == (calibration != "a")
    assert ("measured tokens, SHA-256" in marked) == (evaluation != "b")


def test_a_cell_of_a_comparison_has_one_number():
    runs = compared(({"fingerprint": "a" * 64}, {"tokens_sha256": "b" * 64}))
    page = compare_page(runs).decode()
    cells = re.findall(r'<td class="n[^"]*">([^<]*)</td>', page)
    rates = [cell for cell in cells if re.match(r"[\d.]+(e-?\d+)?$", cell)]
    assert len(rates) > 20 and not any(re.search(r"\d,? .*\d\.\d", cell) for cell in cells)
