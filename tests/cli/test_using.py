"""eval and run give the same results however a checkpoint is opened."""

import re

import pytest

from tests.cli.test_quantizing import refused

CUT = ("--context", "32", "--windows", "4")


def perplexity_of(result):
    assert result.exit_code == 0, result.output
    return re.search(r"perplexity ([\d.]+)", result.stdout)[1]


def test_decoding_first_changes_no_perplexity(nearplane, checkpoint, text):
    results = [
        nearplane("eval", checkpoint, "--text", text, *CUT, way)
        for way in ("--dequantize", "--no-dequantize")
    ]
    assert len(set(map(perplexity_of, results))) == 1
    assert "context 32, stride 32, 4 windows, opened by token 0" in results[0].stdout
    assert "bits per weight" in results[0].stdout


def test_a_model_that_is_not_compressed_is_evaluated(nearplane, model_dir, checkpoint, text):
    before = nearplane("eval", model_dir, "--text", text, *CUT)
    assert "not compressed: float32" in before.stdout
    after = perplexity_of(nearplane("eval", checkpoint, "--text", text, *CUT))
    assert float(after) == pytest.approx(float(perplexity_of(before)), rel=0.2)


def test_texts_that_do_not_do_are_refused(nearplane, checkpoint, text, tmp_path):
    refused(nearplane("eval", checkpoint, "--text", tmp_path / "no.txt"), "no.txt")
    refused(nearplane("eval", checkpoint, "--text", text, "--context", "99999"), "tokens")
    refused(nearplane("eval", checkpoint, "--text", text, "--context", "8", "--stride", "9"), "9")
    refused(nearplane("eval", tmp_path / "nosuch", "--text", text), "nosuch")


@pytest.mark.parametrize("way", ["--dequantize", "--no-dequantize"])
def test_run_writes(nearplane, checkpoint, way):
    results = [
        nearplane("run", checkpoint, "the nearest", "--tokens", "5", "--no-chat", way)
        for _ in range(2)
    ]
    assert results[0].exit_code == 0, results[0].output
    assert results[0].stdout.strip() and results[0].stdout == results[1].stdout


def test_run_takes_the_chat_template(nearplane, checkpoint):
    assert nearplane("run", checkpoint, "hello", "--tokens", "2", "--chat").exit_code == 0


def test_run_refuses_what_it_cannot_do(nearplane, checkpoint, tmp_path):
    refused(nearplane("run", checkpoint, "hello", "--tokens", "0"), "--tokens")
    refused(nearplane("run", tmp_path / "nosuch", "hello"), "nosuch")
