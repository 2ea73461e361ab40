"""eval and run give the same results however a checkpoint is opened."""

import re

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from tests.cli import tiny
from tests.cli.test_quantize import refused

CUT = ("--context", "32", "--windows", "4", "--no-record")


def perplexity_of(result):
    assert result.exit_code == 0, result.output
    return re.search(r"perplexity ([\d.]+)", result.stdout)[1]


def test_decoding_first_changes_perplexity_by_roundings(nearplane, checkpoint, text):
    results = [
        nearplane("eval", checkpoint, "--text", text, *CUT, way)
        for way in ("--dequantize", "--no-dequantize")
    ]
    decoded, as_stored = (float(perplexity_of(result)) for result in results)
    # both sum in float32, in another order: logits differ by some 2⁻²⁴ of their size, about 10
    assert as_stored == pytest.approx(decoded, rel=10 * 2**-24 * 4)
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


def divergence_of(result):
    assert result.exit_code == 0, result.output
    found = re.search(
        r"KL divergence ([\d.e-]+) nats a token, 99 % of them below [\d.e-]+, "
        r"99.9 % below [\d.e-]+, "
        r"top-1 agreement ([\d.]+) %",
        result.stdout,
    )
    return tuple(map(float, found.groups()))


def test_a_checkpoint_is_compared_with_its_model(nearplane, model_dir, checkpoint, text):
    alone = nearplane("eval", checkpoint, "--text", text, *CUT)
    beside = nearplane("eval", checkpoint, "--text", text, *CUT, "--against", model_dir)
    # where memory begins decides how float32 sums are grouped, as above
    assert float(perplexity_of(beside)) == pytest.approx(
        float(perplexity_of(alone)), rel=10 * 2**-24 * 4
    )
    assert len(beside.stdout.splitlines()) == len(alone.stdout.splitlines()) + 1
    kl, top1 = divergence_of(beside)
    assert 0 < kl < 1 and 10 < top1 < 100
    itself = nearplane("eval", model_dir, "--text", text, *CUT, "--against", model_dir)
    assert divergence_of(itself) == (0, 100)


def test_models_that_cannot_be_compared_are_refused(nearplane, checkpoint, text, tmp_path):
    against = ("eval", checkpoint, "--text", text, *CUT, "--against")
    refused(nearplane(*against, tmp_path / "nosuch"), "nosuch")
    config = tiny.model().config
    config.vocab_size = 330
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    refused(nearplane(*against, tmp_path / "other"), "320 tokens against the reference's 330")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Return a model with a table of 32 positions."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=320)
    directory = tmp_path_factory.mktemp("short")
    GPT2LMHeadModel(config).save_pretrained(directory)
    tiny.tokenizer(bos=True).save_pretrained(directory)
    return directory


def test_more_tokens_than_positions_are_refused(short, text, nearplane, tmp_path):
    done = nearplane("eval", short, "--text", text)
    assert done.exit_code == 0 and "context 32" in done.output, done.output
    refused(
        nearplane("eval", short, "--text", text, "--context", "64"), "32 positions", "--context"
    )
    refused(nearplane("run", short, "the nearest plane " * 20), "32 positions", "--tokens")
    calibration = ("--calibration", text, "--length", "64", "--method", "hptq")
    refused(nearplane("quantize", short, tmp_path / "out", *calibration), "--length")
    refused(nearplane("plan", short, "--length", "64"), "32 positions", "--length")
    assert not list(tmp_path.iterdir())
