"""What eval found: lines for people, JSON, and entries of report.json (docs/EVALUATION.md)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer

from nearplane.cli.eval_settings import EvalSettings
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class Evaluation:
    """The results of one run of eval.

    - `texts`: text -> Perplexity or, against another model, Divergence. `tasks`: TaskResults.
    - `how`: the type that products ran in, and whether weights were decoded.
    """

    model: str
    settings: EvalSettings
    how: dict[str, Any]
    texts: dict[str, Any] = field(default_factory=dict)
    tasks: list[Any] = field(default_factory=list)

    def give_out(self) -> None:
        """Print the results, unless they are printed as JSON later, and record them."""
        for line in self.lines() if not self.settings.as_json else ():
            typer.echo(line)
        self.record()

    def lines(self) -> list[str]:
        """Return the results for people: one text in sentences, several and tasks in tables."""
        found = list(self.texts.values())
        lines = text_sentences(found[0]) if len(found) == 1 else text_table(self.texts)
        return lines + task_table(self.tasks)

    def entries(self) -> list[dict[str, Any]]:
        """Return one entry of report.json for every text and every task."""
        from nearplane.export.checksums import file_hash

        conditions = self.conditions()
        made = []
        for text, found in self.texts.items():
            named = {"text": Path(text).name, "text_sha256": file_hash(Path(text))}
            made.append({"kind": "text", **conditions, **named, **text_entry(found)})
        for task in self.tasks:
            made.append({"kind": "task", **conditions, "chat": self.settings.chat, **of_task(task)})
        return made

    def conditions(self) -> dict[str, Any]:
        """Return what all entries of this run have in common."""
        from datetime import UTC, datetime

        from nearplane import __version__
        from nearplane.evaluate.intervals import CONFIDENCE
        from nearplane.report.machine import processor

        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "nearplane_version": __version__,
            "processor": processor(),
            "confidence": CONFIDENCE,
            "against": self.settings.against,
            **self.how,
        }

    def as_json(self) -> str:
        """Return everything as JSON; numbers that are not finite are null."""
        from nearplane.export.checkpoint_format import rounded

        found = {"model": self.model, "evaluations": [rounded(entry) for entry in self.entries()]}
        return json.dumps(found, indent=1)

    def record(self) -> None:
        """Add the results to a checkpoint's report.json; where that cannot be, say so."""
        from nearplane.evaluate.bits import is_checkpoint
        from nearplane.export.evaluations import append_evaluations

        entries = self.entries()
        if not entries or not self.settings.record or not is_checkpoint(self.model):
            return
        try:
            append_evaluations(self.model, entries)
        except NearplaneError as error:
            typer.echo(f"not recorded: {error}", err=True)


def text_sentences(found: Any) -> list[str]:
    """Return sentences with the figures of one text."""
    divergence = [found.sentence()] if hasattr(found, "model") else []
    return [perplexity_of(found).sentence(), *divergence, found.interval_sentence()]


def perplexity_of(found: Any) -> Any:
    """Return the Perplexity of a model, which a Divergence holds."""
    return getattr(found, "model", found)


def text_entry(found: Any) -> dict[str, Any]:
    """Return the conditions and figures of a text."""
    from nearplane.evaluate.intervals import CLUSTERS, why_no_intervals

    own = perplexity_of(found)
    names = ("context", "stride", "bos", "windows", "tokens", "seconds")
    figures = {"perplexity": asdict(own.estimate)}
    if found is not own:
        figures["reference_perplexity"] = asdict(found.reference.estimate)
        figures |= {name: asdict(figure) for name, figure in found.estimates.items()}
    return {
        **{name: getattr(own, name) for name in names},
        "tokens_sha256": own.fingerprint,
        "clusters": min(own.windows, CLUSTERS),
        "no_intervals": why_no_intervals(own.windows),
        "figures": figures,
    }


def of_task(task: Any) -> dict[str, Any]:
    """Return the conditions and figures of a task."""
    from importlib.metadata import version

    figures = {}
    for metric in task.metrics:
        entry = {**asdict(metric.model), "higher_is_better": metric.higher_is_better}
        if metric.comparison is not None:
            entry |= {"reference": asdict(metric.reference), **asdict(metric.comparison)}
        figures[metric.name] = entry
    found = {name: value for name, value in vars(task).items() if name != "metrics"}
    return {**found, "lm_eval_version": version("lm_eval"), "figures": figures}


def text_table(texts: dict[str, Any]) -> list[str]:
    """Return the lines of a table with a row for every text, and what holds for all of them."""
    if not texts:
        return []
    rows = []
    for text, found in texts.items():
        own = perplexity_of(found)
        row = [text, str(own.windows), cell(own.estimate, ".4f")]
        if found is not own:
            forms = (".4f", ".3g", ".3g", ".3g", ".2%")
            row += [cell(e, form) for e, form in zip(found.estimates.values(), forms, strict=True)]
        rows.append(row)
    titles = ["text", "windows", "perplexity", "/ reference's", "KL", "99 %", "99.9 %", "top-1"]
    own = perplexity_of(next(iter(texts.values())))
    opened = "no opening token" if own.bos is None else f"opened by token {own.bos}"
    return [
        *table(titles[: len(rows[0])], rows),
        f"context {own.context}, stride {own.stride}, {opened}; in brackets 95 % confidence "
        "intervals from clusters of windows, where there are windows enough",
    ]


def task_table(tasks: list[Any]) -> list[str]:
    """Return the lines of a table with a row for every figure of every task."""
    rows = []
    for task in tasks:
        for metric in task.metrics:
            name = metric.name if metric.higher_is_better else f"{metric.name} (less is better)"
            row = [task.task, name, str(task.questions), cell(metric.model, ".4g")]
            rows.append(row + ([] if metric.comparison is None else comparison_cells(metric)))
    if not rows:
        return []
    titles = ["task", "metric", "questions", "score", "reference", "difference", "p", "test"]
    return [
        *table(titles[: len(rows[0])], rows),
        "in brackets 95 % confidence intervals over questions",
    ]


def comparison_cells(metric: Any) -> list[str]:
    """Return the cells of a comparison with a reference."""
    found, test = metric.comparison, metric.comparison.test
    if found.only_model is not None:
        test = f"{test}: right alone {found.only_model}, reference {found.only_reference}"
    p = "-" if found.p is None else f"{found.p:.3g}"
    return [cell(metric.reference, ".4g"), cell(found.difference, "+.3g"), p, test]


def cell(figure: Any, form: str) -> str:
    """Return a figure with its interval, if there is one."""
    if figure.low is None or figure.high is None:
        return f"{figure.value:{form}}"
    return f"{figure.value:{form}} ({figure.low:{form}} to {figure.high:{form}})"


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table, columns apart by two spaces."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
