"""Whether a checkpoint is whole, and whether what it says of its errors is true."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from nearplane.evaluate.replay import decoded, replayed_losses
from nearplane.export.checkpoint_reader import Checkpoint, check_layers, open_checkpoint
from nearplane.export.checksums import verify_sums
from nearplane.model.block_loading import stand_alone
from nearplane.model.blocks import Layer, find_blocks
from nearplane.model.compute_dtype import TYPES
from nearplane.model.experts import split_experts_
from nearplane.model.open_model import OpenModel, open_model, open_without_weights
from nearplane.types import NearplaneError
from nearplane.walk.calibration import CalibrationRequest, Text, calibrate

# what rounding the stored certificate to 7 digits may do
DIGITS_TOLERANCE = 1e-6
WEIGHT_TOLERANCE = 1e-5
# sums over tokens in float32, and blocks in bfloat16, differ by as much between machines
LOSS_TOLERANCE = 0.02


@dataclass
class Findings:
    """What was checked, in sentences, and what is wrong."""

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, what: str, problems: list[str]) -> None:
        """Add one check; it is said to have passed only when it found nothing."""
        self.problems += problems
        if not problems:
            self.checked.append(what)


def verify(directory: str) -> Findings:
    """Check a checkpoint by itself: its sums, its records, its certificates."""
    found = Findings()
    found.note("every file is as SHA256SUMS says", verify_sums(directory))
    broken = check_layers(directory)
    found.note("every record is whole and decodes", broken)
    if not broken:
        layers = open_checkpoint(directory).layers
        wrong = [problem for name, entry in layers.items() for problem in doubts(name, entry)]
        bounded = sum(entry.get("bound") is not None for entry in layers.values())
        what = f"{len(layers)} certificates hold together, {bounded} of them with a bound"
        found.note(what, wrong)
    return found


def verify_against(
    directory: str, model: str, calibration: Text | None = None, found: Findings | None = None
) -> Findings:
    """Check the certificates again, on the weights they speak of and the text they rest on.

    - `calibration`: where the text is now; as the recipe says, if None.

    ‖weight − value‖² must agree to 1e-5. The loss needs the calibration's tokens, and is not
    checked without them; it must agree to 2 %, since hidden states differ between machines.
    """
    found = found or Findings()
    checkpoint = open_checkpoint(directory)
    empty = open_without_weights(model)
    by_blocks = not empty.is_gguf and stand_alone(empty.model, find_blocks(empty.model)[1])
    source = open_model(empty, by_blocks=by_blocks)
    split_experts_(source.model)
    found.note("weight errors recomputed", list(wrong_weights(checkpoint, source)))
    tokens, why_not = tokens_of(checkpoint, source, calibration)
    if tokens is None:
        found.checked.append(f"not checked: the calibration loss, because {why_not}")
        return found
    compared = Compared(checkpoint)
    dtype = TYPES.get(recipe_of(checkpoint).get("arithmetic"))
    for name, loss in replayed_losses(source, tokens, checkpoint, dtype):
        compared.note(name, loss)
    found.note(f"calibration losses recomputed, {compared.sentence()}", compared.problems)
    return found


@dataclass
class Compared:
    """Recomputed losses beside the stored ones."""

    checkpoint: Checkpoint
    problems: list[str] = field(default_factory=list)
    count: int = 0
    worst: float = 0.0

    def note(self, name: str, loss: float) -> None:
        """Compare the loss of one layer."""
        stored = self.checkpoint.layers[name]["loss"]
        self.count += 1
        self.worst = max(self.worst, abs(loss - stored) / max(stored, 1e-30))
        if not agree(loss, stored, LOSS_TOLERANCE):
            self.problems.append(f"{name}: the loss is {loss:g}, stored {stored:g}")

    def sentence(self) -> str:
        return f"{self.count} layers, the worst off by {self.worst:.1e} ({LOSS_TOLERANCE} allowed)"


def doubts(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield what cannot be true of a layer's certificate."""
    numbers: dict[str, Any] = {
        key: entry.get(key) for key in ("loss", "damped_loss", "energy", "weight_error")
    }
    for key, number in numbers.items():
        if not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
            yield f"{name}: the certificate's {key} is {number!r}, not a number from 0 up"
            return
    if numbers["loss"] > numbers["damped_loss"] * (1 + DIGITS_TOLERANCE):
        yield f"{name}: loss {numbers['loss']:g} is above damped loss {numbers['damped_loss']:g}"
    bound = entry.get("bound")
    if bound is None and not entry.get("void"):
        yield f"{name}: there is no bound, and nothing says why"
    # not "above": a bound that is not a number bounds nothing
    if bound is not None and not numbers["damped_loss"] <= bound * (1 + DIGITS_TOLERANCE):
        yield f"{name}: damped loss {numbers['damped_loss']:g} is above its bound {bound:g}"


def wrong_weights(checkpoint: Checkpoint, source: OpenModel) -> Iterator[str]:
    """Yield the layers whose ‖weight − value‖² is not what the certificate says, block by block."""
    prefix, blocks = find_blocks(source.model)
    insides = [f"{prefix}.{index}." for index in range(len(blocks))]
    outside = {n: e for n, e in checkpoint.layers.items() if not n.startswith(tuple(insides))}
    yield from wrong_among(outside, checkpoint, source.model)
    for index, inside in enumerate(insides):
        layers = {n: e for n, e in checkpoint.layers.items() if n.startswith(inside)}
        with source.loader.loaded(index):
            yield from wrong_among(layers, checkpoint, source.model)


def wrong_among(
    layers: dict[str, dict[str, Any]], checkpoint: Checkpoint, model: nn.Module
) -> Iterator[str]:
    """Yield those of some layers, which are in memory, that are not as certified."""
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
    """Return the weight of the layer called `name`, as (out, in), or None."""
    try:
        return Layer(name, model.get_submodule(name)).weight().detach().float()
    except AttributeError:
        return None


def agree(actual: float, stored: float, tolerance: float) -> bool:
    """Whether two sums of squares are the same up to `tolerance` of the stored one."""
    return abs(actual - stored) <= tolerance * stored + 1e-12


def recipe_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the recipe, empty if the checkpoint names none."""
    return dict(checkpoint.config["quantization_config"].get("recipe") or {})


def tokens_of(
    checkpoint: Checkpoint, source: OpenModel, calibration: Text | None
) -> tuple[Tensor | None, str]:
    """Return the calibration's tokens if they can be had again, or None and why not."""
    account = recipe_of(checkpoint).get("calibration") or {}
    sizes = account.get("sequences", 0), account.get("length", 0)
    wanted = CalibrationRequest(
        *sizes, account.get("chat_template", False), account.get("spread", False)
    )
    text = calibration if calibration is not None else account.get("source", "")
    try:
        tokens, again = calibrate(text, source.tokenizer, wanted)
    except NearplaneError as error:
        return None, f"it cannot be made again: {error}"
    if again.fingerprint != account.get("fingerprint"):
        return None, f"{text} does not give the tokens of the recipe (their fingerprints differ)"
    return tokens, ""
