"""What stands in the way of comparing runs: other models, other calibrations, other texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearplane.report.findings import figures, is_text
from nearplane.report.reading import Run, is_size, text_of

NONE = "–"


def calibration_rows(run: Run) -> Iterator[tuple[str, str]]:
    """Yield labels and values of what a run was calibrated on, one number each."""
    found = calibration_of(run)
    yield "calibration text", Path(text_of(found.get("source"))).name or NONE
    yield "calibration sequences", count(found.get("sequences"))
    yield "tokens of a sequence", count(found.get("length"))
    yield "sequences of other languages", count(found.get("language_sample"))
    yield "calibration tokens, SHA-256", short(found.get("fingerprint"))
    yield "products in", text_of(run.recipe.get("arithmetic")) or NONE


def measured_rows(run: Run) -> Iterator[tuple[str, str]]:
    """Yield labels and values of the text that a run's checkpoint was measured on last."""
    found = last_text(run)
    yield "measured on", Path(text_of(found.get("text"))).name or NONE
    yield "windows measured", count(found.get("windows"))
    yield "tokens of a window", count(found.get("context"))
    yield "measured tokens, SHA-256", short(found.get("tokens_sha256"))


def differences(named: Sequence[tuple[str, Run]]) -> list[str]:
    """Return a sentence for everything that makes numbers of runs (name, run) not comparable."""
    found = []
    models = values(named, lambda run: Path(run.model).name)
    if len(set(models.values())) > 1:
        found.append(
            f"these are different models ({listed(models)}): no error of one says anything about "
            "the other"
        )
    tokens = values(named, lambda run: text_of(calibration_of(run).get("fingerprint")))
    if len(set(tokens.values())) > 1:
        said = {name: calibration_text(run) for name, run in named if name in tokens}
        found.append(
            f"calibrated on different tokens ({listed(said)}): every relative error is of the "
            "run's own calibration, so a difference may come from the text and not from the method"
        )
    if tokens and len(tokens) < len(named):
        others = [name for name, _ in named if name not in tokens]
        found.append(f"calibration tokens are not known of {', '.join(others)}")
    windows = values(named, lambda run: text_of(last_text(run).get("tokens_sha256")))
    if len(set(windows.values())) > 1:
        said = {name: measured_text(run) for name, run in named if name in windows}
        found.append(
            f"measured on different texts ({listed(said)}): perplexity and divergence do not "
            "compare; nearplane eval with one --text for all makes them"
        )
    return found


def calibration_of(run: Run) -> Mapping[str, Any]:
    """Return the account of a run's calibration; {} where there is none."""
    found = run.recipe.get("calibration")
    return found if isinstance(found, Mapping) else {}


def last_text(run: Run) -> Mapping[str, Any]:
    """Return the last evaluation on a text; {} where there is none."""
    found = [each for each in run.evaluations if is_text(each) and figures(each)]
    return found[-1] if found else {}


def calibration_text(run: Run) -> str:
    """Return a run's calibration in a few words."""
    found = calibration_of(run)
    size = f"{count(found.get('sequences'))} x {count(found.get('length'))}"
    own = found.get("language_sample")
    sample = f", {count(own)} of them other languages" if own else ""
    return f"{size} of {Path(text_of(found.get('source'))).name or NONE}{sample}"


def measured_text(run: Run) -> str:
    """Return what a run's checkpoint was measured on, in a few words."""
    found = last_text(run)
    size = f"{count(found.get('windows'))} x {count(found.get('context'))}"
    return f"{size} of {Path(text_of(found.get('text'))).name or NONE}"


def values(named: Sequence[tuple[str, Run]], of: Callable[[Run], str]) -> dict[str, str]:
    """Return name -> what is said of a run, without those that say nothing."""
    return {name: said for name, run in named if (said := of(run))}


def listed(said: Mapping[str, str]) -> str:
    """Return names and what is said of them as one text."""
    return "; ".join(f"{name}: {text}" for name, text in said.items())


def count(number: Any) -> str:
    """Return a size with commas; a dash for anything else."""
    return f"{number:,}" if is_size(number) else NONE


def short(digest: Any) -> str:
    """Return the beginning of a sum, which tells two apart."""
    return text_of(digest)[:12] or NONE
