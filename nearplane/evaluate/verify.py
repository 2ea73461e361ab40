"""Check that a checkpoint is undamaged, and that the errors it states for its layers are true."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from nearplane.evaluate.replay import decoded, replayed_losses
from nearplane.export.checkpoint_reader import Checkpoint, check_layers, open_checkpoint
from nearplane.export.checksums import SUMS, verify_sums
from nearplane.export.interrupted_update import interrupted_sentence
from nearplane.model.blocks import Layer, find_blocks
from nearplane.model.compute_dtype import TYPES
from nearplane.model.experts import split_experts_
from nearplane.model.open_model import OpenModel, open_model, open_without_weights
from nearplane.report.reading import REPORT
from nearplane.report.report_page import PAGE
from nearplane.types import NearplaneError
from nearplane.walk.calibration import CalibrationRequest, Text, calibrate
from nearplane.walk.sources import Sources

# the numbers of a certificate are stored with 7 digits
DIGITS_TOLERANCE = 1e-6
WEIGHT_TOLERANCE = 1e-5
# between machines, float32 sums over tokens and bfloat16 forward passes differ by so much
LOSS_TOLERANCE = 0.02
ERRORS = ("loss", "damped_loss", "energy", "weight_error")  # of a certificate


@dataclass
class Findings:
    """One sentence for each check that passed, and one for each problem that was found."""

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, sentence: str, problems: list[str]) -> None:
        """Add one check; `sentence` counts as checked only if there are no problems."""
        self.problems += problems
        if not problems:
            self.checked.append(sentence)


def verify(directory: str) -> Findings:
    """Check the checksums, records and certificates of a checkpoint, without the original model."""
    found = Findings()
    if (Path(directory) / SUMS).exists() or not Path(directory).is_dir():
        cut_off = interrupted_sentence(directory)
        problems = [each for each in verify_sums(directory) if not cut_off or not of_report(each)]
        found.add(f"every file is as {SUMS} says", [cut_off, *problems] if cut_off else problems)
    else:
        found.checked.append(f"not checked: the bytes of the files, since {SUMS} is missing")
    broken = check_layers(directory)
    found.add("every record is whole and decodes", broken)
    if not broken:
        layers = open_checkpoint(directory).layers
        wrong = [
            problem for name, entry in layers.items() for problem in contradictions(name, entry)
        ]
        bounded = sum(entry.get("bound") is not None for entry in layers.values())
        sentence = f"{len(layers)} certificates hold together, {bounded} of them with a bound"
        found.add(sentence, wrong)
        unknown = sum(map(states_no_error, layers.values()))
        if unknown:
            found.checked.append(f"not checked: the errors of {unknown} layers, which are imported")
    return found


def of_report(problem: str) -> bool:
    """Whether a problem with a file's sum is of the report."""
    return problem.startswith((f"'{REPORT}'", f"'{PAGE}'"))


def verify_against(
    directory: str,
    model: str,
    calibration: Text | None = None,
    found: Findings | None = None,
    trust_remote_code: bool = False,
) -> Findings:
    """Compute the errors that certificates state again, from the original model.

    ‖weight − value‖² must agree to a relative 1e-5. The loss needs the calibration tokens and is
    not checked without them; it must agree to 2 %, since hidden states differ between machines.

    - `model`: the original model, a directory or a name on the hub.
    - `calibration`: the calibration text; None for the one that the recipe names.
    - `found`: findings to add to; new ones if None.
    - `trust_remote_code`: run Python files that the model brings.
    """
    found = found or Findings()
    checkpoint = open_checkpoint(directory)
    if any(map(states_no_error, checkpoint.layers.values())):
        raise NearplaneError(
            f"{directory} was imported, and does not say what rounding cost: nearplane eval DIR "
            "--against MODEL compares the two"
        )
    empty = open_without_weights(model, trust_remote_code)
    source = open_model(empty, by_blocks=empty.readable_by_blocks)
    split_experts_(source.model)
    found.add("weight errors recomputed", list(wrong_weights(checkpoint, source)))
    tokens, why_not = calibration_tokens(checkpoint, source, calibration)
    if tokens is None and calibration is not None:
        raise NearplaneError(f"the calibration loss cannot be checked, because {why_not}")
    if tokens is None:
        found.checked.append(f"not checked: the calibration loss, because {why_not}")
        return found
    compared = LossComparison(checkpoint)
    dtype = TYPES.get(recipe_of(checkpoint).get("arithmetic", ""))
    for name, loss in replayed_losses(source, tokens, checkpoint, dtype):
        compared.add(name, loss)
    found.add(f"calibration losses recomputed, {compared.sentence()}", compared.problems)
    return found


@dataclass
class LossComparison:
    """Compares recomputed losses with those that a checkpoint states."""

    checkpoint: Checkpoint
    problems: list[str] = field(default_factory=list)
    count: int = 0
    worst: float = 0.0

    def add(self, name: str, loss: float) -> None:
        """Compare the recomputed loss of one layer."""
        stored = self.checkpoint.layers[name]["loss"]
        self.count += 1
        self.worst = max(self.worst, abs(loss - stored) / max(stored, 1e-30))
        if not agree(loss, stored, LOSS_TOLERANCE):
            self.problems.append(f"{name}: the loss is {loss:g}, stored {stored:g}")

    def sentence(self) -> str:
        """Return the number of layers and the largest relative difference."""
        return f"{self.count} layers, the worst off by {self.worst:.1e} ({LOSS_TOLERANCE} allowed)"


def states_no_error(entry: dict[str, Any]) -> bool:
    """Whether a layer was imported, so that nothing is known of its error, and that is said."""
    return bool(entry.get("void")) and all(entry.get(key) is None for key in ERRORS)


def contradictions(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield one sentence for everything that cannot be true of a layer's certificate."""
    if states_no_error(entry):
        return
    numbers: dict[str, Any] = {key: entry.get(key) for key in ERRORS}
    for key, number in numbers.items():
        if not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
            yield f"{name}: the certificate's {key} is {number!r}, not a number from 0 up"
            return
    if numbers["loss"] > numbers["damped_loss"] * (1 + DIGITS_TOLERANCE):
        yield f"{name}: loss {numbers['loss']:g} is above damped loss {numbers['damped_loss']:g}"
    bound = entry.get("bound")
    if bound is None and not entry.get("void"):
        yield f"{name}: there is no bound, and nothing says why"
    # "not <=" instead of ">", so that a bound of NaN is a problem
    if bound is not None and not numbers["damped_loss"] <= bound * (1 + DIGITS_TOLERANCE):
        yield f"{name}: damped loss {numbers['damped_loss']:g} is above its bound {bound:g}"


def wrong_weights(checkpoint: Checkpoint, source: OpenModel) -> Iterator[str]:
    """Yield one sentence for every layer whose ‖weight − value‖² differs from its certificate.

    Blocks are loaded one at a time, after the layers outside of them.
    """
    prefix, blocks = find_blocks(source.model)
    prefixes = [f"{prefix}.{index}." for index in range(len(blocks))]
    outside = {n: e for n, e in checkpoint.layers.items() if not n.startswith(tuple(prefixes))}
    yield from wrong_weights_among(outside, checkpoint, source.model)
    for index, block_prefix in enumerate(prefixes):
        layers = {n: e for n, e in checkpoint.layers.items() if n.startswith(block_prefix)}
        with source.loader.loaded(index):
            yield from wrong_weights_among(layers, checkpoint, source.model)


def wrong_weights_among(
    layers: dict[str, dict[str, Any]], checkpoint: Checkpoint, model: nn.Module
) -> Iterator[str]:
    """Yield the sentences of `wrong_weights` for some layers, whose weights are in memory."""
    for name, entry in layers.items():
        weight = weight_in(model, name)
        if weight is None or tuple(weight.shape) != (entry["rows"], entry["columns"]):
            yield f"{name}: the model has no such layer of {entry['rows']} x {entry['columns']}"
            continue
        error = weight.double() - decoded(checkpoint, name).double()
        actual = float(error.square().sum())
        if not agree(actual, entry["weight_error"], WEIGHT_TOLERANCE):
            yield f"{name}: ‖weight − value‖² is {actual:g}, stored {entry['weight_error']:g}"


def weight_in(model: nn.Module, name: str) -> Float[Tensor, "rows columns"] | None:
    """Return the weight of layer `name`, or None if `model` has no such layer."""
    try:
        return Layer(name, model.get_submodule(name)).weight().detach().float()
    except AttributeError:
        return None


def agree(actual: float, stored: float, tolerance: float) -> bool:
    """Whether |actual − stored| is at most `tolerance` · stored, but for tiny values."""
    return abs(actual - stored) <= tolerance * stored + 1e-12


def recipe_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the recipe in config.json, or an empty dictionary."""
    return dict(checkpoint.config["quantization_config"].get("recipe") or {})


def calibration_tokens(
    checkpoint: Checkpoint, source: OpenModel, calibration: Text | None
) -> tuple[Tensor | None, str]:
    """Return the calibration tokens of the run, or None and the reason why they cannot be made."""
    stored = recipe_of(checkpoint).get("calibration") or {}
    sizes = stored.get("sequences", 0), stored.get("length", 0)
    how = (stored.get(name, False) for name in ("chat_template", "spread"))
    wanted = CalibrationRequest(*sizes, *how, languages=stored.get("language_sample", 0) > 0)
    text = calibration if calibration is not None else stored.get("source", "")
    if calibration is None and stored.get("weights"):
        text = Sources(stored["weights"])
    try:
        tokens, again = calibrate(text, source.tokenizer, wanted)
    except NearplaneError as error:
        return None, f"it cannot be made again: {error}"
    if again.fingerprint != stored.get("fingerprint"):
        return None, f"{text} does not give the tokens of the recipe (their fingerprints differ)"
    return tokens, ""
