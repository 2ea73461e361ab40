"""Tasks of lm-evaluation-harness on a compressed model, without the network."""

import json
import logging
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch

from nearplane.cli.eval_settings import EvalSettings
from nearplane.cli.evaluate import open_any
from nearplane.evaluate import tasks as module
from nearplane.evaluate.tasks import (
    Answers,
    TaskOptions,
    collected,
    open_tasks,
    questions_at_once,
    task_result,
)
from nearplane.types import NearplaneError
from tests.cli import tiny
from tests.cli.test_cited import ROOT, cited
from tests.cli.test_quantize import refused

QUESTIONS = 24
WORDS = tiny.WORDS.split()


# lm-eval brings 39 packages, which `make test` does without
LACKING = "tasks are tested where lm-eval is: make test-long, or pip install '.[tasks]'"


@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    """Return a task of multiple choice as a YAML file with its questions beside it."""
    pytest.importorskip("lm_eval", reason=LACKING)
    directory = tmp_path_factory.mktemp("quiz")
    rows = [
        {
            "question": " ".join(WORDS[i % 8 : i % 8 + 5]) + f" {i}",
            "choices": [WORDS[(i + k) % 14] for k in (0, 3, 7)],
            "answer": i % 3,
        }
        for i in range(QUESTIONS)
    ]
    (directory / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(directory / "questions.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1.5},
    }
    (directory / "quiz.yaml").write_text(json.dumps(config))  # which is YAML, too
    rolling = {key: config[key] for key in ("dataset_path", "dataset_kwargs", "test_split")}
    rolling |= {"task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_text": ""}
    rolling |= {"doc_to_target": "{{question}}", "metric_list": [{"metric": "bits_per_byte"}]}
    (directory / "rolling.yaml").write_text(json.dumps(rolling))
    return directory


@pytest.fixture
def no_network(monkeypatch):
    """Fail if anything looks for the network, with libraries set as where there is one."""
    used = []

    def refuse(*arguments, **_):
        used.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    assert not used


def right(directory, quiz):
    """Return for every question whether the most likely choice is right, by the plain formula."""
    model, tokenizer = open_any(str(directory), dequantize=True)
    found = []
    for line in (quiz / "questions.jsonl").read_text().splitlines():
        row, scores = json.loads(line), []
        for choice in row["choices"]:
            # no token goes across the border, and nothing stands before the question but <s>
            ids = tokenizer(row["question"]).input_ids
            start, whole = len(ids), tokenizer(f"{row['question']} {choice}").input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[i - 1, whole[i]]) for i in range(start, len(whole))))
        found.append(scores.index(max(scores)) == row["answer"])
    return found


def test_a_compressed_model_answers_offline(
    nearplane, checkpoint, model_dir, quiz, tmp_path, no_network
):
    names = f"{quiz / 'quiz.yaml'},{quiz / 'rolling.yaml'}"
    words = ("eval", checkpoint, "--tasks", names, "--against", model_dir, "--no-record")
    done = nearplane(*words, "--json")
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)["evaluations"]
    assert (first["task"], first["version"], first["questions"]) == ("quiz", "1.5", QUESTIONS)
    acc = first["figures"]["acc"]
    ours, theirs = right(checkpoint, quiz), right(model_dir, quiz)
    assert acc["value"] == pytest.approx(sum(ours) / QUESTIONS, abs=1e-6)
    assert acc["reference"]["value"] == pytest.approx(sum(theirs) / QUESTIONS, abs=1e-6)
    alone = [a and not b for a, b in zip(ours, theirs, strict=True)]
    assert acc["only_model"] == sum(alone)
    assert acc["only_reference"] - acc["only_model"] == sum(theirs) - sum(ours)
    assert acc["low"] < acc["value"] < acc["high"] and acc["test"].startswith("McNemar")
    bits = second["figures"]["bits_per_byte"]
    assert not bits["higher_is_better"] and "bootstrap" in bits["test"]
    assert bits["difference"]["low"] < bits["difference"]["value"] < bits["difference"]["high"]
    shown = nearplane(*words, "--questions", "12", "--fewshot", "0", "--chat")
    row = shown.stdout.splitlines()[1].split()
    assert row[:3] == ["quiz", "acc", "12"] and "right alone" in shown.stdout


def test_tasks_that_cannot_be_read_are_refused_in_a_sentence(
    nearplane, quiz, tmp_path, no_network, monkeypatch
):
    monkeypatch.setattr("nearplane.cli.evaluate.open_any", lambda *_: pytest.fail("opened"))

    def changed(name, **entries):
        config = json.loads((quiz / "quiz.yaml").read_text()) | entries
        (tmp_path / name).write_text(json.dumps(config))
        return tmp_path / name

    missing = changed("a.yaml", dataset_kwargs={"data_files": {"test": "no/such.jsonl"}})
    remote = changed("b.yaml", dataset_path="somebody/questions", dataset_kwargs={})
    no_split = changed("c.yaml", test_split="validation")
    (tmp_path / "d.yaml").write_text("a: [")
    (tmp_path / "e.yaml").write_text("just: words")
    twice = f"{quiz / 'quiz.yaml'},{changed('f.yaml')}"
    for names, said in [
        (tmp_path / "none.yaml", "there is no task file"),
        (missing, "no/such.jsonl"),
        (remote, "somebody/questions"),
        (no_split, "cannot be read: KeyError"),
        (tmp_path / "d.yaml", "cannot be read: "),
        (tmp_path / "e.yaml", "cannot be read: "),
        (twice, "names the task quiz twice"),
    ]:
        refused(nearplane("eval", "model", "--tasks", names), said)


def test_what_is_documented_runs(nearplane, checkpoint, model_dir, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason=LACKING)
    text = (ROOT / "docs" / "EVALUATION.md").read_text()
    for language, name in (("yaml", "quiz.yaml"), ("json", "questions.jsonl")):
        (tmp_path / name).write_text(re.search(rf"```{language}\n(.*?)```", text, re.S)[1])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "out")
    lines = [line for line in cited() if "--tasks" in line]
    assert lines
    for line in lines:
        words = [{"MODEL": model_dir}.get(word, word) for word in line.split()[1:]]
        done = nearplane(*words)
        assert done.exit_code == 0 and "quiz  acc" in done.stdout, done.output
    entry = json.loads(Path("out", "report.json").read_text())["evaluations"][-1]
    assert (entry["kind"], entry["questions"]) == ("task", 2)
    # every key is documented
    for key in (*entry, *entry["figures"]["acc"]):
        assert f"`{key}`" in text or f'"{key}"' in text, key


class FakeTask:
    """What `task_result` asks of a task of lm-evaluation-harness."""

    def aggregation(self):
        return {"acc": lambda values: sum(values) / len(values)}

    def higher_is_better(self):
        return {"acc": True}

    def get_config(self, key):
        return {"metadata": {"version": 2}, "num_fewshot": 3}[key]


def sample(question, filter_, right):
    hashes = {"doc_hash": f"d{question}", "prompt_hash": f"p{question}"}
    return {"filter": filter_, "metrics": ["acc"], "acc": right, **hashes}


def test_filters_are_figures_of_their_own():
    filters = (("strict", 1), ("loose", 3))
    samples = [sample(q, name, float(q < most)) for name, most in filters for q in range(4)]
    found = collected(samples)
    assert found.prompts == ["d0p0", "d1p1", "d2p2", "d3p3"]
    assert found.values == {"acc, strict": [1, 0, 0, 0], "acc, loose": [1, 1, 1, 0]}
    result = task_result("quiz", FakeTask(), found, None)
    assert (result.version, result.fewshot, result.questions) == ("2", 3, 4)
    assert [(m.name, m.model.value) for m in result.metrics] == [
        ("acc, strict", 0.25),
        ("acc, loose", 0.75),
    ]


def test_answers_to_other_questions_are_not_compared():
    ours = Answers(["a", "b"], {"acc": [1.0, 0.0]})
    assert task_result("quiz", FakeTask(), ours, ours).metrics[0].comparison.p == 1
    with pytest.raises(NearplaneError, match="in other words"):
        task_result("quiz", FakeTask(), ours, Answers(["a", "c"], ours.values))


def test_batches_shrink_with_the_vocabulary(monkeypatch):
    assert questions_at_once(tiny.model()) == 16
    for size, expected in ((49_152, 3), (262_144, 1)):
        monkeypatch.setattr(module, "vocabulary", lambda _, size=size: size)
        assert questions_at_once(None) == expected


def test_options_out_of_range_are_refused():
    for wrong in ({"questions": 0}, {"fewshot": -1}):
        with pytest.raises(NearplaneError):
            TaskOptions(**wrong)


def test_a_chat_template_that_is_not_there_is_refused():
    EvalSettings(chat=True).check_template(tiny.tokenizer(bos=True))
    with pytest.raises(NearplaneError, match="leave --chat out"):
        EvalSettings(chat=True).check_template(None)


def test_warnings_are_kept_once_and_what_is_expected_is_not():
    logger = logging.getLogger("nearplane.test_tasks")
    with module.warnings_of(logger.name) as found:
        for line in ("cut short", "cut short", "an already-initialized model"):
            logger.warning(line)
    assert found == ["cut short"]


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(NearplaneError, match="nearplane\\[tasks\\]"):
        open_tasks(["quiz"])
