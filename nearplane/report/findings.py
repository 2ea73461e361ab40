"""What a run's numbers say: warnings, and three sentences on what hurts, helps and comes next."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from nearplane.report.layer_lines import LayerLine
from nearplane.report.reading import Run, known_number, printable, text_of
from nearplane.report.report_json import few_token_sentences

HALF_A_BIT = 0.5  # bits per weight
HALVES = 4**-HALF_A_BIT  # what that leaves of the divergence, in the model of equal slopes
NAMED = 5  # layers in a sentence
IMPORTED = "imported"


@dataclass(frozen=True)
class Advice:
    """Three sentences: what hurts, what would help, and what to run next, with its command."""

    hurts: str
    helps: str
    following: str
    command: str

    def sentences(self) -> list[str]:
        return [self.hurts, self.helps, f"{self.following}: {self.command}"]


@dataclass(frozen=True)
class More:
    """What half a bit more a weight is expected to buy.

    - `tensor_bytes`: of all tensors then. `before`, `after`: the divergence, in nats a token.
    """

    bpw: float
    tensor_bytes: float
    before: float
    after: float


def advice(run: Run, directory: str) -> Advice:
    """Return what a user needs to know first; `directory` is the checkpoint's, for the command."""
    more = half_a_bit_more(run)
    following, command = next_step(run, directory, more)
    return Advice(hurts(run), helps(run, more), following, command)


def hurts(run: Run) -> str:
    """Return a sentence on the layers that lost most."""
    worst = worst_layers(run.layers)
    if not worst:
        if run.method == IMPORTED:
            return "What rounding cost is not known: another package rounded, and says nothing."
        return "What rounding cost is not known: no layer's error was measured on its inputs."
    losses = [each.relative_loss for each in worst if each.relative_loss is not None]
    said = (
        f"{worst[0].name} lost most: {percent(losses[0])} of the power of its outputs on the "
        f"calibration text, where the median layer lost {percent(median(losses))}"
    )
    heaviest = max(run.layers, key=lambda each: each.predicted or 0.0)
    total = run.predicted_kl
    if heaviest.predicted and total and not is_expert(heaviest):
        share = percent(heaviest.predicted / total)
        said += f"; of what predictions lose, the largest share, {share}, is expected of "
        said += heaviest.name
    if run.fallbacks:
        said += (
            f"; {len(run.fallbacks)} of {len(run.layers)} layers could only be rounded to nearest"
        )
    return f"{said}."


def helps(run: Run, more: More | None) -> str:
    """Return a sentence on what would lower the error."""
    if more is not None:
        return (
            f"Half a bit more a weight ({megabytes(more.tensor_bytes)} in place of "
            f"{megabytes(run.tensor_bytes)}) is expected to take the divergence from "
            f"{more.before:.3g} to {more.after:.3g} nats a token."
        )
    if run.fallbacks:
        return "More calibration text would reach the layers that were rounded to nearest."
    if run.method == IMPORTED:
        return "Quantizing the original model anew would choose the integers by its inputs."
    return (
        f"This method gave every layer the same number of bits: ECLQ shares {run.bpw:.2f} bits a "
        "weight out by how sensitive the predictions are to each layer."
    )


def next_step(run: Run, directory: str, more: More | None) -> tuple[str, str]:
    """Return what to do next, and the command for it."""
    model, where = shlex.quote(run.model or "MODEL"), shlex.quote(directory)
    if run.method == IMPORTED or not run.model:
        model = "MODEL"
    if not run.evaluations:
        measure = f"nearplane eval {where} --text heldout.txt --against {model}"
        return "Measure it on a text that it was not calibrated on", measure
    bpw = run.bpw if more is None else more.bpw
    again = f"nearplane quantize {model} larger --bpw {bpw:.3f} --calibration notes.txt"
    return "If that is too much, try" if more else "Compare it with ECLQ of the same size", again


def half_a_bit_more(run: Run) -> More | None:
    """Return what half a bit more buys by the run's own sensitivities; None where it has none.

    Older reports have only the total: half a bit everywhere halves it.
    """
    before = run.predicted_kl
    if not before:
        return None
    before, bpw = float(before), run.bpw + HALF_A_BIT
    asked = (known_number(run.recipe.get("bpw")) or run.bpw) + HALF_A_BIT
    after = interpolated(run.averages, asked) if run.averages else before * HALVES
    if after is None:
        return None
    return More(bpw, run.tensor_bytes + HALF_A_BIT * run.weights / 8, before, after)


def interpolated(points: list[tuple[int | float, int | float]], at: int | float) -> float | None:
    """Return the value at a place between points, geometrically; None outside of them."""
    ordered = sorted(points)
    for (left, low), (right, high) in zip(ordered, ordered[1:], strict=False):
        if left - 1e-9 <= at <= right + 1e-9 and right > left and low > 0 and high > 0:
            share = min(max((at - left) / (right - left), 0.0), 1.0)
            return low ** (1 - share) * high**share
    return None


def worst_layers(layers: list[LayerLine]) -> list[LayerLine]:
    """Return the layers whose error is known, the largest relative loss first."""
    known = [each for each in layers if each.relative_loss is not None]
    return sorted(known, key=lambda each: -(each.relative_loss or 0.0))


def warnings(run: Run) -> Iterator[str]:
    """Yield a sentence for everything that has no bound, was left out or fell back."""
    raw = run.raw
    yield from without_bound(run)
    yield from together(run.left_out)
    if run.fallbacks:
        share = f"{len(run.fallbacks)} of {len(run.layers)} layers"
        yield f"rounded to nearest, {share}: {some(run.fallbacks)}"
    if text_of(raw.get("rows_by_themselves")):
        yield f"rows were rounded by themselves: {text_of(raw['rows_by_themselves'])}"
    entries = {entry["name"]: entry for entry in raw["layers"]}
    yield from map(text_of, few_token_sentences(entries))
    dropped = [name for name, entry in entries.items() if entry.get("dropped_tokens")]
    if dropped:
        yield f"tokens with infinite or NaN inputs were dropped in {len(dropped)} layers: " + some(
            dropped
        )
    if run.padded:
        yield f"{run.padded} calibration tokens are padding"


def without_bound(run: Run) -> Iterator[str]:
    """Yield a sentence for every reason for which layers have no bound."""
    by_reason: dict[str, list[str]] = {}
    for entry in run.raw["layers"]:
        if entry.get("void"):
            by_reason.setdefault(text_of(entry["void"]), []).append(entry["name"])
    for reason, names in by_reason.items():
        yield f"no bound for {len(names)} of {len(run.layers)} layers ({some(names)}): {reason}"


def together(sentences: list[str]) -> Iterator[str]:
    """Yield sentences "NAME is ..." that say the same of several layers as one."""
    by_rest: dict[str, list[str]] = {}
    for sentence in sentences:
        name, _, rest = sentence.partition(" ")
        by_rest.setdefault(rest, []).append(name)
    for rest, names in by_rest.items():
        if len(names) > 1 and rest.startswith("is "):
            yield f"{len(names)} layers, each of which {rest}: {some(names)}"
        else:
            yield from (f"{name} {rest}".rstrip() for name in names)


def figures(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the figures of an evaluation that have a value: name -> value, low, high."""
    found = evaluation.get("figures")
    entries = found.items() if isinstance(found, Mapping) else ()
    return {
        printable(name): each
        for name, each in entries
        if isinstance(each, Mapping) and known_number(each.get("value")) is not None
    }


def measured(run: Run, name: str) -> list[float]:
    """Return the values of a figure in all evaluations of a text, the last one last."""
    texts = [each for each in run.evaluations if is_text(each)]
    return [float(found[name]["value"]) for each in texts if name in (found := figures(each))]


def is_text(evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of a text, and not of a task."""
    return evaluation.get("kind") != "task"


def some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def is_expert(layer: LayerLine) -> bool:
    """Whether a layer shares its sensitivity with the other experts of its kind."""
    return ".experts." in layer.name


def percent(share: int | float) -> str:
    """Return a share in percent, with three significant digits."""
    return f"{float(f'{100 * share:.3g}'):g} %"


def megabytes(size: int | float) -> str:
    """Return bytes in MB, or in GB where that is shorter."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e7 else f"{size / 1e6:.3g} MB"
