"""Several runs side by side: as rows for the terminal, and as a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearplane.report import embedding
from nearplane.report.findings import measured, megabytes, percent, worst_layers
from nearplane.report.kinds import Kind, kinds
from nearplane.report.layer_lines import LayerLine
from nearplane.report.reading import Run, known_number, text_of
from nearplane.report.report_page import duration
from nearplane.report.run_differences import calibration_rows, differences, measured_rows
from nearplane.types import NearplaneError

SCRIPTS = (embedding.PLOT, "templates/figures.js", "templates/compare.js")
DIFFERING = 10  # layers whose errors differ most
NONE = "–"
# rows that are marked where runs differ in them
HEEDED = ("model", "calibration tokens, SHA-256", "measured tokens, SHA-256")


@dataclass(frozen=True)
class Named:
    """A run with the name that it is shown under."""

    name: str
    run: Run


def named_runs(directories: Sequence[str | Path], runs: Sequence[Run]) -> list[Named]:
    """Return runs with the shortest names that tell them apart.

    NearplaneError for less than two, and for the same directory twice.
    """
    paths = [Path(directory).resolve() for directory in directories]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise NearplaneError("compare takes two or more different checkpoints")
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return [Named(name, run) for name, run in zip(names, runs, strict=True)]


def totals(runs: Sequence[Named]) -> list[tuple[str, list[str]]]:
    """Return rows of (what it is, one value for every run), without those that no run knows."""
    columns = [dict(of_run(each.run)) for each in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = [(label, [column.get(label, NONE) for column in columns]) for label in labels]
    return [row for row in rows if set(row[1]) != {NONE}]


def warnings(runs: Sequence[Named]) -> list[str]:
    """Return a sentence for everything that makes numbers of the runs not comparable."""
    return differences([(each.name, each.run) for each in runs])


def of_run(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is compared of a run."""
    yield "model", Path(run.model).name or NONE
    yield "method", run.method or NONE
    yield "weights on disk", megabytes(run.tensor_bytes)
    yield "bits per weight", f"{run.bpw:.3f}"
    loss, expected = known_number(run.raw.get("relative_loss")), run.predicted_kl
    yield "relative error", NONE if loss is None else percent(loss)
    yield "expected KL divergence", NONE if expected is None else f"{expected:.3g}"
    for name in ("kl", "perplexity"):
        found = measured(run, name)
        yield f"measured {name}", f"{found[-1]:.4g}" if found else NONE
    yield "bounds that hold", f"{run.certified} of {len(run.layers)}"
    yield from measured_rows(run)
    worst = worst_layers(run.layers)
    yield "lost most", worst[0].name if worst else NONE
    yield "rounded to nearest", str(len(run.fallbacks))
    yield from calibration_rows(run)
    seconds = known_number(run.raw.get("seconds"))
    yield "time", NONE if seconds is None else duration(seconds)
    machine = run.raw.get("machine") or {}
    yield "processor", text_of(machine.get("processor")) or NONE


def by_kind(runs: Sequence[Named]) -> list[tuple[str, list[Kind | None]]]:
    """Return rows of (kind of layers, its sums in every run, or None)."""
    columns = [{kind.name: kind for kind in kinds(each.run.layers)} for each in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]


def differing(runs: Sequence[Named]) -> list[tuple[str, list[LayerLine]]]:
    """Return the layers, of all runs, whose relative errors differ by the largest factor."""
    columns = [{layer.name: layer for layer in each.run.layers} for each in runs]
    common = [name for name in columns[0] if all(name in column for column in columns)]
    rows = [(name, [column[name] for column in columns]) for name in common]
    return sorted((row for row in rows if factor(row[1]) > 1), key=lambda row: -factor(row[1]))[
        :DIFFERING
    ]


def factor(layers: Sequence[LayerLine]) -> float:
    """Return the largest relative error over the smallest; 0 where one is unknown or 0."""
    losses = [layer.relative_loss or 0.0 for layer in layers]
    return max(losses) / min(losses) if min(losses) > 0 else 0.0


def compare_page(runs: Sequence[Named]) -> bytes:
    """Return a page with the runs side by side."""
    return embedding.page(
        "compare.html",
        SCRIPTS,
        compare_data(runs),
        title=" and ".join(each.name for each in runs),
        names=[each.name for each in runs],
        totals=totals(runs),
        warnings=warnings(runs),
        heeded=HEEDED,
        kinds=by_kind(runs),
        differing=differing(runs),
    )


def compare_data(runs: Sequence[Named]) -> list[dict[str, Any]]:
    """Return what the charts are made of: for every run its totals and its layers' fields."""
    fields = ("name", "kind", "block", "bpw", "relative_loss")
    return [
        {
            "name": each.name,
            "tensor_bytes": each.run.tensor_bytes,
            "predicted_kl": each.run.predicted_kl,
            "measured_kl": measured(each.run, "kl")[-1:],
            "layers": {key: [getattr(line, key) for line in each.run.layers] for key in fields},
        }
        for each in runs
    ]
