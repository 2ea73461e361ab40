"""report.html: one self-contained page on what a run did, for people."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nearplane.report import embedding
from nearplane.report.findings import (
    advice,
    figures,
    half_a_bit_more,
    measured,
    megabytes,
    percent,
    warnings,
    worst_layers,
)
from nearplane.report.kinds import kinds, parts
from nearplane.report.layer_lines import LayerLine
from nearplane.report.reading import (
    REPORT,
    Run,
    checked_run,
    is_size,
    known_number,
    printable,
    text_of,
)

PAGE = "report.html"
SCRIPTS = (embedding.PLOT, "templates/figures.js", "templates/table.js", "templates/charts.js")
SHOWN_ROWS = 500  # of the table without JavaScript
WARNINGS = 50  # sentences; all of them are in report.json
FIELDS = ("name", "kind", "block", "rows", "columns", "stored_bytes", "bpw", "relative_loss")
FIELDS += ("damped", "expected", "bound", "loss_over_bound", "sensitivity", "predicted")
FIELDS += ("largest_code", "outliers", "am_gm_bits", "tokens", "warning")
# of the table of all layers: field -> title
COLUMNS = {
    "name": "layer",
    "shape": "shape",
    "bpw": "bits",
    "stored_bytes": "bytes",
    "relative_loss": "relative error",
    "damped": "damped",
    "expected": "expected",
    "bound": "bound",
    "loss_over_bound": "damped / bound",
    "predicted": "expected divergence",
    "tokens": "tokens",
    "warning": "warning",
}
LAYER_NUMBERS = COLUMNS.keys() - {"predicted", "warning"}


def report_files(report: dict[str, Any], directory: str) -> dict[str, Any]:
    """Return the files that a checkpoint has of a report: report.json and the page of it.

    - `directory`: the checkpoint's name, for the commands that the page shows.
    """
    # in the order that the file will have, so that `nearplane report` gives the same page
    stored = json.loads(json.dumps(report, sort_keys=True))
    return {REPORT: report, PAGE: report_page(checked_run(stored, REPORT), directory)}


def report_page(run: Run, directory: str) -> bytes:
    """Return the page of a run."""
    worst = worst_layers(run.layers)
    rows = run.layers if len(run.layers) <= SHOWN_ROWS else (worst or run.layers)[:SHOWN_ROWS]
    sentences = list(warnings(run))
    more = half_a_bit_more(run)
    return embedding.page(
        "report.html",
        SCRIPTS,
        page_data(run),
        title=f"{Path(run.model).name or 'a model'}, {run.bpw:.2f} bits a weight",
        run=run,
        method=run.method,
        cards=list(cards(run)),
        advice=advice(run, directory),
        warnings=sentences[:WARNINGS],
        more_warnings=max(len(sentences) - WARNINGS, 0),
        done=list(what_was_done(run)),
        parts=parts(run),
        kinds=kinds(run.layers),
        figures=list(measured_figures(run)),
        worst=worst[:10],
        answers=answers(run, worst),
        more=more,
        columns=columns_of(run),
        rows=rows,
        megabytes=megabytes,
        percent=percent,
    )


def columns_of(run: Run) -> list[tuple[str, str]]:
    """Return the columns of the table of all layers, without those that would be empty."""
    some = {key for key in ("predicted", "warning") if any(getattr(x, key) for x in run.layers)}
    return [pair for pair in COLUMNS.items() if pair[0] in some | LAYER_NUMBERS]


@dataclass(frozen=True)
class Card:
    """A number at the head of the page."""

    label: str
    value: str
    remark: str = ""


def cards(run: Run) -> Iterator[Card]:
    """Yield the numbers that the page begins with."""
    yield Card("weights on disk", megabytes(run.tensor_bytes), "all tensors, without headers")
    quantized = f"of {run.weights:,} quantized weights"
    yield Card("bits per weight", f"{run.bpw:.3f}", quantized)
    loss = known_number(run.raw.get("relative_loss"))
    if loss is not None:
        yield Card("relative error", percent(loss), "of the power of all layers' outputs")
    for key, label in (("perplexity", "perplexity"), ("kl", "KL divergence")):
        if found := measured(run, key):
            yield Card(label, f"{found[-1]:.4g}", "measured by nearplane eval")
    if run.predicted_kl is not None:
        yield Card("expected KL divergence", f"{run.predicted_kl:.3g}", "nats a token")
    if not run.evaluations:
        yield Card("perplexity", "not measured", "nearplane eval measures it")
    yield Card("bounds that hold", f"{run.certified} of {len(run.layers)}", "layers")


def what_was_done(run: Run) -> Iterator[tuple[str, str]]:
    """Yield labels and texts on the model, the method, the calibration, time and machine."""
    yield "model", run.model or "not known"
    hidden = ("method", "allocation", "calibration", "predicted_kl")
    settings = {key: value for key, value in run.recipe.items() if key not in hidden}
    yield "method", run.method or "not known"
    if settings:
        yield "settings", pairs(settings)
    calibration = run.recipe.get("calibration")
    if isinstance(calibration, Mapping):
        yield "calibration", pairs(calibration)
    seconds = known_number(run.raw.get("seconds"))
    if seconds is not None:
        yield "time", duration(seconds)
    machine = run.raw.get("machine")
    if isinstance(machine, Mapping):
        yield "machine", machine_text(machine)


def machine_text(machine: Mapping[str, Any]) -> str:
    """Return the machine of a run in one line."""
    said = [text_of(machine.get("processor")), text_of(machine.get("accelerator"))]
    said.append(text_of(machine.get("system")))
    for key, unit in (("cores", "cores"), ("threads", "threads"), ("processes", "processes")):
        if is_size(machine.get(key)):
            said.append(f"{machine[key]} {unit}")
    for key, label in (("memory_bytes", "memory"), ("peak_memory_bytes", "peak memory")):
        if is_size(machine.get(key)):
            said.append(f"{label} {machine[key] / 2**30:.2f} GiB")
    versions = machine.get("versions")
    if isinstance(versions, Mapping):
        said += [f"{text_of(name)} {text_of(value)}" for name, value in versions.items()]
    return ", ".join(filter(None, said))


def pairs(settings: Mapping[str, Any]) -> str:
    """Return settings as "name value, name value"."""
    return ", ".join(f"{printable(str(k))} {value_text(v)}" for k, v in settings.items())


def value_text(value: Any) -> str:
    """Return a setting as JSON has it, but texts without quotes."""
    return printable(value if isinstance(value, str) else json.dumps(value))


@dataclass(frozen=True)
class Figure:
    """A figure that `nearplane eval` measured, with its confidence interval if there is one."""

    of: str
    name: str
    value: str
    interval: str
    against: str


def measured_figures(run: Run) -> Iterator[Figure]:
    """Yield all figures of all evaluations."""
    for each in run.evaluations:
        of = text_of(each.get("text")) or text_of(each.get("task")) or text_of(each.get("name"))
        for name, figure in figures(each).items():
            low, high = known_number(figure.get("low")), known_number(figure.get("high"))
            interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
            value = f"{figure['value']:.5g}"
            yield Figure(of, name, value, interval, text_of(each.get("against")))


def duration(seconds: int | float) -> str:
    """Return a time in the unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def answers(run: Run, worst: list[LayerLine]) -> dict[str, str]:
    """Return the sentence that answers each chart's question, by the chart's name."""
    ratios = [each.loss_over_bound for each in run.layers if each.loss_over_bound is not None]
    uniform = [
        each.expected / each.bound
        for each in run.layers
        if each.expected is not None and each.bound
    ]
    found = {"tight": "No layer has a bound that holds: warnings say why, Words what it means."}
    if ratios:
        found["tight"] = (
            f"It holds for {len(ratios)} of {len(run.layers)} layers: the median layer's damped "
            f"error is {percent(median(ratios))} of its bound, the closest {percent(max(ratios))}. "
            "A small share says that the guarantee is far from what happened, not that a layer is "
            "good."
        )
    if uniform:
        found["tight"] += (
            f" Errors that are uniform in their cells would be at {percent(median(uniform))}."
        )
    largest = parts(run)[:3]
    said = [f"{each.name} {percent(each.stored_bytes / run.tensor_bytes)}" for each in largest]
    found["bytes"] = f"The largest parts of {megabytes(run.tensor_bytes)}: {', '.join(said)}."
    rates = sorted(run.layers, key=lambda each: each.bpw)
    if rates:
        found["bits"] = (
            f"From {rates[0].bpw:.2f} bits a weight ({rates[0].name}) to {rates[-1].bpw:.2f} "
            f"({rates[-1].name})."
        )
    return found


def page_data(run: Run) -> dict[str, Any]:
    """Return what the charts and the table are made of: a list of every field of the layers."""
    layers = {key: [getattr(layer, key) for layer in run.layers] for key in FIELDS}
    data = {
        "layers": layers,
        "pivots": [list(layer.log2_pivots) for layer in run.layers],
        "parts": [[each.name, each.stored_bytes, each.is_quantized] for each in parts(run)],
        "probed_bpw": run.probed_bpw,
        "averages": run.averages,
        "predicted_kl": run.predicted_kl,
        "asked_bpw": known_number(run.recipe.get("bpw")),
        "bpw": run.bpw,
        "tensor_bytes": run.tensor_bytes,
        "weights": run.weights,
        "measured_kl": measured(run, "kl"),
        "experts": list(expert_tokens(run)),
        "rows": SHOWN_ROWS,
    }
    return data if any(data["pivots"]) else data | {"pivots": []}


def expert_tokens(run: Run) -> Iterator[tuple[str, str, int]]:
    """Yield mixture, expert and the tokens that were routed to it."""
    for mixture, experts in (run.raw.get("experts") or {}).items():
        for expert, tokens in experts.items() if isinstance(experts, dict) else ():
            if is_size(tokens):
                yield printable(mixture), printable(expert), tokens
