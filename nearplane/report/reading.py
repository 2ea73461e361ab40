"""Read a report.json, which may be old, damaged or a stranger's, into what the pages show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr
from typing import Any, NoReturn

from nearplane.report.layer_lines import LayerLine, layer_lines
from nearplane.report.report_json import FORMAT
from nearplane.types import NearplaneError

REPORT = "report.json"
LARGEST = 1e300  # numbers that are larger are no measurement
LONGEST_NAME = 1000  # characters

# fields of a layer: those that must be there, and those that older reports or other methods lack
SIZES = ("rows", "columns", "stored_bytes")
NUMBERS = ("loss", "damped_loss", "energy", "bound", "seconds", "tokens", "dead_columns")
NUMBERS += ("dropped_tokens", "code_bpw", "weight_error")
TEXTS = ("void", "fallback", "method")


@dataclass(frozen=True)
class Run:
    """A run as its report.json has it, checked.

    - `raw`: all of it. `layers`: in the order in which they were quantized.
    - `averages`: expected divergence at other averages, as (bits per weight, nats a token).
    - `evaluations`: what `nearplane eval` measured of the checkpoint, the last one last.
    - `lacks`: sentences on what an older nearplane did not write.
    """

    raw: Mapping[str, Any]
    layers: list[LayerLine]
    probed_bpw: int | float | None = None
    averages: list[tuple[int | float, int | float]] = field(default_factory=list)
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """What was quantized, as it was named on the command line."""
        return text_of(self.raw.get("model"))

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.raw.get("recipe") or {}

    @property
    def method(self) -> str:
        return text_of(self.recipe.get("method"))

    @property
    def predicted_kl(self) -> int | float | None:
        """The expected divergence of the whole model, in nats a token."""
        return known_number(self.recipe.get("predicted_kl"))

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """Name -> (numbers, bytes) of what is stored as it was; {} in older reports."""
        found = self.raw.get("kept") or {}
        return {printable(n): (each["numbers"], each["bytes"]) for n, each in found.items()}

    @property
    def fallbacks(self) -> list[str]:
        """The layers that were rounded to nearest."""
        return texts(self.raw.get("fallbacks"))

    @property
    def left_out(self) -> list[str]:
        """Sentences on what stays as it is."""
        return texts(self.raw.get("left_out"))

    @property
    def padded(self) -> int:
        """Calibration tokens that are padding."""
        calibration = self.recipe.get("calibration")
        found = calibration.get("padded") if isinstance(calibration, Mapping) else None
        return size_or_zero(found)

    @property
    def quantized_bytes(self) -> int:
        return sum(layer.stored_bytes for layer in self.layers)

    @property
    def other_bytes(self) -> int:
        """Bytes of the tensors that are stored as they were."""
        return self.raw["bits"]["other_bytes"]

    @property
    def other_numbers(self) -> int:
        """How many numbers these tensors have; 0 if that is not known."""
        return size_or_zero(self.raw["bits"].get("other_numbers"))

    @property
    def weights(self) -> int:
        """Quantized weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def bpw(self) -> float:
        """Bits per quantized weight."""
        return 8 * self.quantized_bytes / max(self.weights, 1)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors in the weight files, without these files' headers."""
        return self.quantized_bytes + self.other_bytes

    @property
    def certified(self) -> int:
        """How many layers have a bound that holds."""
        return sum(layer.bound is not None for layer in self.layers)


def read_report(path: Path) -> Run:
    """Return the run of a report.json, or of the one in a directory.

    Raises NearplaneError for what is not there, is no JSON or does not hold what it should.
    """
    file = path / REPORT if path.is_dir() else path
    if not file.is_file():
        lacking = f"{path} has no {REPORT}" if path.is_dir() else f"{path} is no file"
        raise NearplaneError(f"{lacking}: nearplane quantize and import write one")
    try:
        content = json.loads(file.read_bytes(), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NearplaneError(f"{file} is damaged: it is no JSON ({error})") from error
    return checked_run(content, str(file))


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(f"it holds {name}")


def checked_run(content: Any, source: str) -> Run:
    """Return the run of a report; NearplaneError, beginning with `source`, for a damaged one."""
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(layers, list) or not layers:
        raise NearplaneError(f"{source} is no report of nearplane: it lists no layers")
    version = content.get("report_version")
    if type(version) is int and version > FORMAT:
        raise NearplaneError(f"{source} was written by a newer nearplane: upgrade nearplane")
    for number, entry in enumerate(layers, 1):
        check_layer(entry, f"{source}: layer {number}")
    names = [entry["name"] for entry in layers]
    if len(set(names)) < len(names):
        raise NearplaneError(f"{source} is damaged: it lists a layer twice")
    check_totals(content, source)
    probed = checked_probes(content.get("sensitivity"), source)
    return Run(
        raw=content,
        layers=layer_lines(layers, probed["units"]),
        probed_bpw=probed["bpw"],
        averages=probed["averages"],
        evaluations=dictionaries(content.get("evaluations")),
        lacks=lacking(content),
    )


def check_layer(entry: Any, where: str) -> None:
    """Raise NearplaneError unless the fields of a layer that pages show are of their types."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise NearplaneError(f"{where} has no name that can be printed")
    where = f"{where} ({repr(name)})"
    for key in SIZES:
        if not is_size(entry.get(key)) or not entry[key]:
            raise NearplaneError(f"{where} has no {key} above zero")
    if known_number(entry.get("bpw")) is None:
        raise NearplaneError(f"{where} has no bpw that is a number")
    for key in NUMBERS:
        if entry.get(key) is not None and known_number(entry[key]) is None:
            raise NearplaneError(f"{where} has a {key} that is no number")
    for key in TEXTS:
        if not isinstance(entry.get(key), str | None):
            raise NearplaneError(f"{where} has a {key} that is no text")
    facts, pivots = entry.get("facts"), entry.get("log2_pivots")
    if not isinstance(facts, dict | None) or not are_numbers((facts or {}).values()):
        raise NearplaneError(f"{where} has facts that are no numbers")
    if not isinstance(pivots, list | None) or not are_numbers(pivots or []):
        raise NearplaneError(f"{where} has log2_pivots that are no numbers")


def check_totals(content: Mapping[str, Any], source: str) -> None:
    """Raise NearplaneError unless the entries beside the layers are of their types."""
    bits, kept = content.get("bits"), content.get("kept") or {}
    if not isinstance(bits, dict) or not is_size(bits.get("other_bytes")):
        raise NearplaneError(f"{source} is damaged: it has no bits with other_bytes")
    sizes = kept.values() if isinstance(kept, dict) else [None]
    for each in sizes:
        if not isinstance(each, dict) or not all(
            is_size(each.get(key)) for key in ("numbers", "bytes")
        ):
            raise NearplaneError(f"{source} is damaged: kept has no numbers and bytes by name")
    for key in ("recipe", "machine", "experts"):
        if not isinstance(content.get(key), dict | None):
            raise NearplaneError(f"{source} is damaged: {key} is no object")


def checked_probes(found: Any, source: str) -> dict[str, Any]:
    """Return a report's sensitivities; NearplaneError for damaged ones."""
    if not found:
        return {"bpw": None, "units": {}, "averages": []}
    found = found if isinstance(found, dict) else {}
    units, averages, bpw = found.get("units"), found.get("averages"), found.get("bpw")
    whole = isinstance(units, dict) and isinstance(averages, list) and known_number(bpw) is not None
    if not whole or not all(map(is_pair, [*units.values(), *averages])):
        raise NearplaneError(f"{source} is damaged: sensitivity holds no pairs of numbers")
    return {"bpw": bpw, "units": units, "averages": [(a, b) for a, b in averages]}


def is_pair(value: Any) -> bool:
    """Whether a value is a list of two finite numbers."""
    return isinstance(value, list) and len(value) == 2 and None not in map(known_number, value)


def lacking(content: Mapping[str, Any]) -> list[str]:
    """Return sentences on what an older nearplane did not write."""
    imported = (content.get("recipe") or {}).get("method") == "imported"
    found = []
    if "machine" not in content and not imported:
        found.append("the machine is not known: the report was written by an older nearplane")
    if "kept" not in content:
        found.append("what is stored as it was is known in total only, not by name")
    if not any(entry.get("log2_pivots") for entry in content["layers"]) and not imported:
        found.append("pivots of the layers are not in this report")
    if (content.get("recipe") or {}).get("allocation") and not content.get("sensitivity"):
        found.append("sensitivities are not in this report, only the bits that follow from them")
    return found


def dictionaries(found: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list; [] for anything else."""
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def is_size(value: Any) -> bool:
    """Whether a value is an integer from 0 to 2⁶³ − 1."""
    return type(value) is int and 0 <= value < 2**63


def size_or_zero(value: Any) -> int:
    """Return a size as it is, and 0 for everything else."""
    return value if is_size(value) else 0


def known_number(value: Any) -> float | int | None:
    """Return a finite number as it is, and None for everything else."""
    numeric = type(value) in (int, float)
    return value if numeric and abs(value) < LARGEST else None


def are_numbers(values: Any) -> bool:
    """Whether all values are finite numbers or unknown, which is None."""
    return all(each is None or known_number(each) is not None for each in values)


def text_of(value: Any) -> str:
    """Return a text in which everything can be printed; "" for what is no text."""
    return printable(value) if isinstance(value, str) else ""


def texts(value: Any) -> list[str]:
    """Return the texts of a list that are not empty; [] for anything else."""
    return [text_of(each) for each in value if text_of(each)] if isinstance(value, list) else []


def printable(text: str) -> str:
    """Return a text with a replacement for every character that cannot be printed."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
