"""explore: the page, a layer of a checkpoint in it, and what is refused."""

import json
import re

import pytest

from tests.cli.test_quantize import refused

LAYER = "model.layers.1.self_attn.q_proj"


@pytest.fixture(autouse=True)
def no_browser(monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    return opened


def test_the_page_is_written_and_opened(nearplane, tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # over its own page, too
        assert nearplane("explore").exit_code == 0
    assert no_browser == [(tmp_path / "explore.html").as_uri()] * 2
    assert nearplane("explore", "--no-open", "--out", "other.html").exit_code == 0
    assert len(no_browser) == 2
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "explore.html").read_bytes()


def test_a_row_of_a_checkpoint_is_shown(nearplane, checkpoint, model_dir, text, tmp_path):
    out = tmp_path / "page.html"
    words = ["--layer", checkpoint, LAYER, 5, "--against", model_dir, "--text", text]
    done = nearplane("explore", "--no-open", "--out", out, *words, "--columns", 3, 9)
    assert done.exit_code == 0, done.output
    data = json.loads(re.search(r'id="layer-data">(.*?)</script>', out.read_text())[1])
    assert data["name"] == LAYER and data["row"] == 5 and data["columns"] == 64
    assert data["sections"][0]["pair"] == [3, 9] and data["tokens"] > 500
    # the inputs are those of another text, and rounding heeds code lengths: most integers agree
    assert data["same"] > 32 and data["damped_loss"] < data["bound"]


def test_what_cannot_be_shown_is_refused(nearplane, checkpoint, model_dir, text, tmp_path):
    def no(said, *words):
        result = nearplane("explore", "--no-open", "--out", tmp_path / "page.html", *words)
        refused(result, said)
        assert not (tmp_path / "page.html").exists()

    more = ("--against", model_dir, "--text", text)
    no("need --layer", "--text", text)
    no("needs --against MODEL", "--layer", checkpoint, LAYER, 5)
    no("no text file", "--layer", checkpoint, LAYER, 5, "--against", model_dir, "--text", "no.txt")
    no("there is model.layers.1.self_attn.q_proj", "--layer", checkpoint, LAYER[:-1], 5, *more)
    no("rows 0 to 63", "--layer", checkpoint, LAYER, 64, *more)
    no("two different", "--layer", checkpoint, LAYER, 5, *more, "--columns", 1, 64)
    no("takes no vectors", "--layer", checkpoint, "model.embed_tokens", 5, *more)
    no("no directory", "--layer", tmp_path / "none", LAYER, 5, *more)
    (tmp_path / "mine.html").write_text("mine")
    refused(
        nearplane("explore", "--no-open", "--out", tmp_path / "mine.html"), "give another --out"
    )
    refused(nearplane("explore", "--no-open", "--out", tmp_path / "a" / "b.html"), "a directory")
    assert (tmp_path / "mine.html").read_text() == "mine"
