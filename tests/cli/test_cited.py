"""What README and docs say to type runs: commands of nearplane as they stand, benches by name."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from nearplane.cli.app import COMMANDS
from tests.bench.test_benches import BENCH, BENCHES
from tests.cli import tiny

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# README's name -> what stands for it, and a rate that the tiny model's layers can meet
WORDS = {
    "notes.txt": "text",
    "heldout.txt": "text",
    "test.txt": "text",
    "chats.txt": "OTHER",
    "out": "OUT",
    "out4": "OUT4",
    "model-gptq-4bit": "FOREIGN",
}
WORDS |= {"MODEL": "model", "HuggingFaceTB/SmolLM2-135M": "model", "3.125": "5", "1024": "64"}
WORDS |= {"55MB": "80kB"}
BENCH_CALL = re.compile(r"bench/((?:peers/)?\w+\.py)((?: --[\w-]+(?: [\w.]+)*)*)")


def cited() -> list[str]:
    """Return every command line of nearplane in a block of code, without what starts it."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        lines = [
            line.split("#")[0].strip() for line in text.splitlines() if " nearplane " in f" {line}"
        ]
        found += [re.sub(r"^torchrun .* -m ", "", line) for line in lines]
    names = "|".join(name for name, _, _ in COMMANDS)
    called = [line for line in found if re.match(rf"nearplane ({names}) ", line)]
    # tests/cli/test_demo.py and test_serve.py have the others
    called += [example for name, _, example in COMMANDS if name != "demo"]
    return list(dict.fromkeys(" ".join(line.split()) for line in called))


def commands() -> list[str]:
    """Return the lines that this file runs; tests/evaluate/test_tasks.py has those with --tasks.

    Of lines that differ in what `WORDS` stand for alone, the first.
    """
    found = [line for line in cited() if "serve" not in line.split()[:2] and "--tasks" not in line]
    return list({" ".join(stands(line)): line for line in reversed(found)}.values())[::-1]


def stands(line: str) -> list[str]:
    """Return a command's words, with what stands for README's names."""
    return [WORDS.get(word, word) for word in shlex.split(line)[1:]]


@pytest.fixture
def place(tmp_path, monkeypatch, checkpoint, grouped):
    """Go to an empty directory with the checkpoints OUT and OUT4; threads are as they were."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "OUT")
    shutil.copytree(grouped, tmp_path / "OUT4")
    tiny.write_text(tmp_path / "OTHER", tiny.TEXT[1000:])
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_commands_are_found():
    assert len(commands()) >= 10
    assert {line.split()[1] for line in commands()} >= {"plan", "quantize", "verify", "eval", "run"}


@pytest.mark.whole_run
@pytest.mark.parametrize("line", commands())
def test_a_command_runs_as_it_stands(line, nearplane, place, model_dir, text):
    paths = {"text": str(text), "model": str(model_dir)}
    words = [paths.get(word, word) for word in stands(line)]
    if "FOREIGN" in words:
        made = nearplane("export", "OUT4", "FOREIGN", "--to", "gptq")
        assert made.exit_code == 0, made.output
    if words[0] in ("quantize", "import"):
        for name in ("OUT", "OUT4"):
            shutil.rmtree(place / name)
    result = nearplane(*words)
    assert result.exit_code == 0, result.output


def test_benches_are_there_with_their_options():
    called = [
        (document.name, *call)
        for document in DOCUMENTS
        for call in BENCH_CALL.findall(document.read_text())
    ]
    assert len(called) > 10
    for document, name, options in called:
        source = (BENCH / name).read_text() + (BENCH / "tiny.py").read_text()
        assert name in BENCHES or name.startswith("peers/"), f"{document} names {name}"
        for option in re.findall(r"--[\w-]+", options):
            named = rf'"(--)?{option[2:]}"|\b{option[2:]}='
            assert re.search(named, source), f"{document}: {name} has no {option}"
