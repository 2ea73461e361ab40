"""`vllm serve DIR` over HTTP, against `nearplane.load` in the same environment."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("vllm") is None:
    reason = "vLLM is not installed: `make test-vllm` makes an environment"
    pytest.skip(reason, allow_module_level=True)

import nearplane as npl
from nearplane.cli.demo import embedded_model
from tests.vllm import tiny
from tests.vllm.server import Server, serving

QUICK_ECLQ = ("--bpw", "3.125", "--no-allocate", "--no-cross")
METHODS = {"hptq": ("--bpw", "3.125"), "ssqr": ("--bits", "3"), "eclq": QUICK_ECLQ}
QUICK = ("--sequences", "2", "--length", "256")
# float32 against float32: the same sums in another order. Rounding gave 1.4e-6 to 3.2e-5 here, the
# most with SSQR's outliers and 30 blocks; a matrix with a wrong row moves them by whole units.
SAME_SUMS = 2e-4
NEW_TOKENS = 24


@dataclass
class Answer:
    """What a server said: all tokens, and the log probability of each but the first."""

    tokens: list[int]
    logprobs: Tensor
    prompt_tokens: int


def complete(server: Server, model: Path, prompt: list[int]) -> Answer:
    """Let the server score the prompt and go on greedily."""
    answer = server.ask(
        "/v1/completions",
        model=str(model),
        prompt=prompt,
        max_tokens=NEW_TOKENS,
        temperature=0,
        echo=True,
        logprobs=1,
        return_token_ids=True,
        ignore_eos=True,
    )["choices"][0]
    logprobs = torch.tensor(answer["logprobs"]["token_logprobs"][1:])
    return Answer(prompt + answer["token_ids"][-NEW_TOKENS:], logprobs, len(prompt))


def scored(model: torch.nn.Module, tokens: list[int]) -> Tensor:
    """Return the log probabilities of every next token, (tokens − 1, words)."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)


def taken(scores: Tensor, tokens: list[int]) -> Tensor:
    return scores.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def check(answer: Answer, scores: Tensor, limit: float) -> None:
    """Log probabilities agree within `limit` (RMS), and every new token is the most likely one.

    Two near ties may be told apart differently: by 6 times the limit, as a difference has twice the
    variance and the largest of some hundred is about 3 deviations out.
    """
    expected = taken(scores, answer.tokens)
    assert len(answer.logprobs) == len(expected) == answer.prompt_tokens + NEW_TOKENS - 1
    off = (answer.logprobs - expected).square().mean().sqrt()
    behind = scores.max(-1).values[-NEW_TOKENS:] - expected[-NEW_TOKENS:]
    print(f"RMS of log probabilities {off:.2e}, limit {limit:.2e}; most behind {behind.max():.2e}")
    assert off <= limit
    assert (behind <= 6 * limit).all()


@pytest.fixture(scope="session")
def text() -> str:
    """Python's help topics."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


@pytest.fixture(scope="session")
def quantized(tmp_path_factory, text):
    """Return method -> a checkpoint of SmolLM2 made by the command line."""
    made: dict[str, Path] = {}
    place = tmp_path_factory.mktemp("checkpoints")
    (place / "text.txt").write_text(text)

    def checkpoint(method: str) -> Path:
        if method not in made:
            made[method] = place / method
            command = [str(Path(sys.executable).with_name("nearplane")), "quantize"]
            command += [str(embedded_model()), str(made[method]), "--method", method]
            command += ["--calibration", str(place / "text.txt"), *QUICK, *METHODS[method]]
            # so few tokens are faster without threads that wait for each other
            alone = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(command, cwd=place, env=alone, check=True, stdout=subprocess.DEVNULL)
        return made[method]

    return checkpoint


@pytest.fixture
def random_model(tmp_path):
    """Return family -> a checkpoint of a small random model."""
    return lambda family: tiny.write(family, tmp_path / family)


def prompt_of(checkpoint: Path, text: str) -> list[int]:
    """Return more tokens than kernels multiply by at once; above 128 the weight is decoded."""
    return npl.load_tokenizer(checkpoint)(text[:2000]).input_ids[:200]


@pytest.mark.long
@pytest.mark.parametrize("method", list(METHODS))
def test_a_served_model_says_what_the_loaded_one_says(quantized, text, tmp_path, method):
    """In float32, where nothing but the order of sums differs."""
    path = quantized(method)
    prompt = prompt_of(path, text)
    with serving(path, tmp_path, "--dtype", "float32", "--enforce-eager") as server:
        assert server.status("/health") == 200
        answer = complete(server, path, prompt)
    scores = scored(npl.load(path, dtype=torch.float32), answer.tokens)
    check(answer, scores, SAME_SUMS)


@pytest.mark.long
def test_compiled_in_bf16_it_is_as_exact_as_bf16_is(quantized, text, tmp_path):
    """As `vllm serve DIR` runs by itself. The limit is twice what bf16 changes in transformers."""
    path = quantized("hptq")
    with serving(path, tmp_path) as server:
        answer = complete(server, path, prompt_of(path, text))
    exact = scored(npl.load(path, dtype=torch.float32), answer.tokens)
    rounded = scored(npl.load(path, dtype=torch.bfloat16), answer.tokens)
    change = taken(rounded, answer.tokens) - taken(exact, answer.tokens)
    check(answer, exact, 2 * float(change.square().mean().sqrt()))


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "ranks"), [("qwen2", 1), ("qwen2", 2), ("qwen2", 4), ("gpt2", 1), ("gpt2", 2)]
)
def test_tensor_parallel_ranks_give_the_same(random_model, tmp_path, family, ranks):
    """Two key-value heads on four ranks: each of them is held twice."""
    path, prompt = random_model(family), [*range(5, 100, 3)]
    options = "--dtype", "float32", "--enforce-eager"
    with serving(path, tmp_path, *options, ranks=ranks) as server:
        answer = complete(server, path, prompt)
    check(answer, scored(npl.load(path, dtype=torch.float32), answer.tokens), SAME_SUMS)


@pytest.mark.long
def test_smollm2_on_three_ranks(quantized, text, tmp_path):
    """Nine heads and three key-value heads."""
    path = quantized("ssqr")
    options = "--dtype", "float32", "--enforce-eager"
    with serving(path, tmp_path, *options, ranks=3) as server:
        answer = complete(server, path, prompt_of(path, text))
    check(answer, scored(npl.load(path, dtype=torch.float32), answer.tokens), SAME_SUMS)


@pytest.mark.long
def test_a_damaged_checkpoint_is_refused_in_one_sentence(random_model, tmp_path):
    broken = random_model("qwen2")
    weights = broken / "model.safetensors"
    data = bytearray(weights.read_bytes())
    # a byte within the first record
    at = data.index(b"NPLR") + 40
    data[at] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AssertionError):
        with serving(broken, tmp_path, "--enforce-eager"):
            pass
    said = r"NearplaneError: \S+: the record's CRC-32 does not match its bytes\n"
    assert re.search(said, (tmp_path / "log.txt").read_text())
