"""Answers of a model to the questions of tasks of lm-evaluation-harness, without the network.

theirs                          ours
task, group, tag                a task is what a name or a YAML file gives, one or several
doc, sample                     question
metric, filter                  the figure of a task; "acc", or "exact_match, strict-match"
limit                           questions
"""

import io
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from nearplane.evaluate.intervals import Estimate
from nearplane.evaluate.paired_answers import Aggregate, Comparison, compared, score
from nearplane.model.output_head import vocabulary
from nearplane.types import NearplaneError, Progress, first_line, naming_errors, no_progress

SEED = 1234  # of the examples that are shown before a question; lm-eval's own default
BATCH_BYTES = 1e9  # memory that the logits of a batch may take
BATCH_TOKENS = 512  # tokens of a question for which that holds
MOST_AT_ONCE = 16  # questions in a batch
SHOWN_WARNINGS = 5


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are asked.

    - `questions`: at most so many of each task; None for all.
    - `fewshot`: examples before each question; None for the task's own number.
    - `chat_template`: whether the model's chat template is put around a question.
    """

    questions: int | None = None
    fewshot: int | None = None
    chat_template: bool = False

    def __post_init__(self) -> None:
        if self.questions is not None and self.questions < 1:
            raise NearplaneError(f"at least 1 question is needed, not {self.questions}")
        if self.fewshot is not None and self.fewshot < 0:
            raise NearplaneError(f"the number of examples cannot be {self.fewshot}")


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    - `model`, `reference`: of each model, as lm-evaluation-harness computes it, with its interval.
    - `comparison`: of both; None without a reference.
    """

    name: str
    higher_is_better: bool
    model: Estimate
    reference: Estimate | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class TaskResult:
    """The figures of a task.

    - `version`, `fewshot`: of the task's YAML file, and how many examples stood before a question.
    """

    task: str
    version: str
    fewshot: int
    questions: int
    metrics: list[Metric]


@dataclass(frozen=True)
class Answers:
    """What a model made of a task's questions.

    - `values`: name of a metric -> its value of every question.
    - `prompts`: a hash of every question as it was asked.
    """

    prompts: list[str]
    values: dict[str, list[Any]] = field(default_factory=dict)


@contextmanager
def offline() -> Iterator[None]:
    """Let `datasets` and `huggingface_hub` read what is on this machine, and nothing else."""
    settings = [import_module(n) for n in ("datasets.config", "huggingface_hub.constants")]
    before = [getattr(module, "HF_HUB_OFFLINE") for module in settings]  # noqa: B009
    try:
        for module in settings:
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            setattr(module, "HF_HUB_OFFLINE", value)  # noqa: B010


def check_installed() -> None:
    """Raise NearplaneError unless lm-evaluation-harness is installed."""
    if find_spec("lm_eval") is None:
        raise NearplaneError(
            'tasks are run by lm-evaluation-harness: pip install "nearplane[tasks]"'
        )


def open_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Return name -> task of lm-evaluation-harness, groups as their tasks, with all questions read.

    - `names`: of tasks or groups that lm-evaluation-harness brings, or paths of YAML files.

    Raises NearplaneError for a name that is no task, and for questions that are not on this
    machine.
    """
    check_installed()
    files = [name for name in names if is_file_name(name)]
    for name in files:
        if not Path(name).is_file():
            raise NearplaneError(f"there is no task file {name}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import_module("datasets").disable_progress_bars()
    tasks_of: Any = import_module("lm_eval.tasks")
    known = tasks_of.TaskManager(include_defaults=len(files) < len(names))
    found: dict[str, Any] = {}
    for name in names:
        if name not in files and name not in known.task_index:
            near = get_close_matches(name, known.all_tasks, 3)
            hint = f" (near: {', '.join(near)})" if near else ""
            raise NearplaneError(f"lm-evaluation-harness has no task {name!r}{hint}")
        opened = opened_tasks(known, name)
        if twice := sorted(found.keys() & opened.keys()):
            raise NearplaneError(f"--tasks names the task {twice[0]} twice")
        found |= opened
    return found


def is_file_name(name: str) -> bool:
    """Whether a task's name is meant as the path of a file."""
    return Path(name).suffix.lower() in (".yaml", ".yml") or "/" in name or "\\" in name


def opened_tasks(known: Any, name: str) -> dict[str, Any]:
    """Return the tasks of one name with their questions."""
    try:
        with offline():
            return known.load([name])["tasks"]
    except ConnectionError as error:
        raise NearplaneError(
            f"the questions of the task {name} are not on this machine, and eval fetches none "
            f"({first_line(error)}): load them once with `datasets`, or name files of your own in "
            "a YAML file, as docs/EVALUATION.md shows"
        ) from error
    except FileNotFoundError as error:
        raise NearplaneError(
            f"a file of the task {name} is missing (paths are from the current directory): "
            f"{first_line(error)}"
        ) from error
    # a task's file may hold anything, and functions of its own
    except Exception as error:
        raise NearplaneError(
            f"the task {name} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error


def results_of(
    tasks: dict[str, Any],
    options: TaskOptions,
    model: tuple[Any, Any],
    reference: tuple[Any, Any] | None = None,
    progress: Progress = no_progress,
) -> tuple[list[TaskResult], list[str]]:
    """Return the figures of all tasks, and warnings of lm-evaluation-harness.

    - `tasks`: what `open_tasks` returned.
    - `model`, `reference`: each with its tokenizer; the reference may be None.
    - `progress`: is called with the share of one kind of questions that one model has answered.
    """
    with warnings_of("lm_eval") as warnings:
        ours = answers(tasks, options, model, "answering", progress)
        theirs = None
        if reference is not None:
            theirs = answers(tasks, options, reference, "the other model answering", progress)
    found = [
        task_result(name, task, ours[name], None if theirs is None else theirs[name])
        for name, task in tasks.items()
    ]
    return found, warnings


def answers(
    tasks: dict[str, Any],
    options: TaskOptions,
    model: tuple[Any, Any],
    step: str,
    progress: Progress,
) -> dict[str, Answers]:
    """Return what a model makes of the questions of all tasks."""
    evaluator, wrapper = (
        import_module(f"lm_eval.{name}") for name in ("evaluator", "models.huggingface")
    )
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if options.fewshot is not None and own != 0:  # 0 in its file means that it cannot have any
            own = options.fewshot
        task.set_config(key="num_fewshot", value=own or 0)
        task.set_fewshot_seed(seed=SEED)
    random.seed(SEED)
    torch.manual_seed(SEED)
    with naming_errors("answering tasks"), told_by_bars(step, progress), offline():
        asked = wrapper.HFLM(
            pretrained=model[0], tokenizer=model[1], batch_size=questions_at_once(model[0])
        )
        found = evaluator.evaluate(
            asked,
            {"tasks": tasks},
            limit=options.questions,
            bootstrap_iters=0,
            apply_chat_template=options.chat_template,
        )
    return {name: collected(found["samples"][name]) for name in tasks}


def collected(samples: list[dict[str, Any]]) -> Answers:
    """Return the values of every metric, in the order of questions."""
    filters = {sample["filter"] for sample in samples}
    first = min(filters, default="none")
    found = Answers([s["doc_hash"] + s["prompt_hash"] for s in samples if s["filter"] == first])
    for sample in samples:
        for metric in sample["metrics"]:
            alone = len(filters) == 1
            name = metric if alone else f"{metric}, {sample['filter']}"
            found.values.setdefault(name, []).append(sample[metric])
    return found


def task_result(name: str, task: Any, ours: Answers, theirs: Answers | None) -> TaskResult:
    """Return the figures of a task from the answers of one or both models."""
    if theirs is not None and ours.prompts != theirs.prompts:
        raise NearplaneError(f"the models were asked {name} in other words: templates differ")
    aggregates, better = task.aggregation(), task.higher_is_better()
    metrics = []
    for metric, values in ours.values.items():
        base = metric.partition(", ")[0]
        other = None if theirs is None else theirs.values[metric]
        metrics.append(metric_of(metric, aggregates[base], better.get(base, True), values, other))
    version = (task.get_config("metadata") or {}).get("version", "")
    shots = int(task.get_config("num_fewshot") or 0)
    return TaskResult(name, str(version), shots, len(ours.prompts), metrics)


def metric_of(
    name: str, aggregate: Aggregate, higher: bool, ours: list[Any], theirs: list[Any] | None
) -> Metric:
    """Return one figure of one or both models."""
    found = score(ours, aggregate)
    if theirs is None:
        return Metric(name, higher, found)
    comparison = compared(ours, theirs, aggregate)
    return Metric(name, higher, found, score(theirs, aggregate), comparison)


def questions_at_once(model: Any) -> int:
    """Return how many questions fit a batch: logits of all their tokens, thrice in float32."""
    return max(1, min(MOST_AT_ONCE, int(BATCH_BYTES / (vocabulary(model) * 12 * BATCH_TOKENS))))


@contextmanager
def told_by_bars(step: str, progress: Progress) -> Iterator[None]:
    """Let the progress bars of lm-evaluation-harness call `progress` and draw nothing."""
    tqdm: Any = import_module("tqdm").tqdm
    outermost: list[Any] = []

    class Told(tqdm):
        def __init__(self, *args: Any, **named: Any):
            outermost.append(self)
            kind = str(named.get("desc") or "").removeprefix("Running ").removesuffix(" requests")
            self.told = f"{step}, {kind.lower()}" if kind else step
            super().__init__(*args, **{**named, "file": io.StringIO()})

        def display(self, *args: Any, **named: Any) -> None:
            if self.total and outermost and outermost[0] is self:
                progress(self.told, min(self.n / self.total, 1.0))

        def close(self) -> None:
            if self in outermost:
                outermost.remove(self)
            super().close()

    names = ("lm_eval.models.huggingface", "lm_eval.api.model", "lm_eval.api.task")
    modules: list[Any] = [import_module(name) for name in names]
    before = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = Told
        yield
    finally:
        for module, theirs in zip(modules, before, strict=True):
            module.tqdm = theirs


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """Yield a list that is given the warnings of a logger, each once and only the first few."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage().partition("\n")[0]
            expected = "already-initialized" in line or "`pretrained` model kwarg" in line
            if not expected and line not in found and len(found) < SHOWN_WARNINGS:
                found.append(line)

    logger, kept = logging.getLogger(name), Kept(logging.WARNING)
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.addHandler(kept)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
        logger.propagate = propagates
