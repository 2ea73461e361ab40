"""report.json's layers as the pages show them: kinds, blocks, and errors on one scale."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from nearplane.report.report_json import masked_numbers, ratio, relative_loss

NUMBER = re.compile(r"([0-9]+)")
LONGEST_NUMBER = 9  # digits of a block's number
SIGNIFICANT = 7  # digits of computed numbers, as report.json has


@dataclass(frozen=True)
class LayerLine:
    """One layer of a run. Errors are relative to the energy of its outputs; None where unknown.

    - `kind`: what layers of all blocks have in common. `block`: the first number in the name.
    - `relative_loss`: loss / energy, without damping.
    - `damped`, `expected`, `bound`: the damped loss, see `expected_loss`, and its upper bound.
    - `sensitivity`: divergence of the predictions with this layer, or these experts, alone rounded
      at a common rate; `predicted`: what is expected of it at its own rate. Nats a token.
    - `warning`: why there is no bound, or why the layer was rounded in another way; "" if neither.
    """

    name: str
    kind: str
    block: int | None
    rows: int
    columns: int
    stored_bytes: int
    bpw: float
    relative_loss: float | None
    damped: float | None
    expected: float | None
    bound: float | None
    loss_over_bound: float | None
    sensitivity: float | None
    predicted: float | None
    largest_code: float | None
    outliers: float | None
    entropy: float | None
    am_gm_bits: float | None
    tokens: int
    seconds: float
    warning: str
    log2_pivots: Sequence[int | float] = field(default=())

    @property
    def weights(self) -> int:
        return self.rows * self.columns


def layer_lines(
    layers: Iterable[Mapping[str, Any]], units: Mapping[str, Sequence[int | float]]
) -> list[LayerLine]:
    """Return the lines of layers as report.json, or a checkpoint's certificates, have them.

    - `units`: of every layer, or kind of experts, its sensitivity and predicted divergence.
    """
    entries = list(layers)
    kinds = kinds_of([entry["name"] for entry in entries])
    return [layer_line(entry, kinds[entry["name"]], units) for entry in entries]


def layer_line(
    entry: Mapping[str, Any], kind: str, units: Mapping[str, Sequence[int | float]]
) -> LayerLine:
    """Return the line of one layer."""
    name, facts = entry["name"], entry.get("facts") or {}
    energy, void = entry.get("energy"), entry.get("void") or ""
    probed = units.get(name) or units.get(unit_of_expert(name)) or (None, None)
    return LayerLine(
        name=name,
        kind=kind,
        block=block_of(name),
        rows=entry["rows"],
        columns=entry["columns"],
        stored_bytes=entry["stored_bytes"],
        bpw=float(entry["bpw"]),
        relative_loss=relative_loss(entry),
        damped=significant(ratio(entry.get("damped_loss"), energy)),
        expected=significant(ratio(expected_loss(entry), energy)),
        bound=significant(ratio(entry.get("bound"), energy)),
        loss_over_bound=significant(ratio(entry.get("damped_loss"), entry.get("bound"))),
        sensitivity=as_float(probed[0]),
        predicted=as_float(probed[1]),
        largest_code=as_float(facts.get("largest_code")),
        outliers=as_float(facts.get("outliers")),
        entropy=as_float(facts.get("entropy")),
        am_gm_bits=as_float(facts.get("am_gm_bits")),
        tokens=int(entry.get("tokens") or 0),
        seconds=float(entry.get("seconds") or 0),
        warning="; ".join(dict.fromkeys(filter(None, (entry.get("fallback") or "", void)))),
        log2_pivots=entry.get("log2_pivots") or (),
    )


def expected_loss(entry: Mapping[str, Any]) -> float | None:
    """Return the damped loss of errors that are uniform in their cells; None without a bound.

    With a side s the mean of squares is s²/12, a third of the bound's s²/4. Around a target of
    damped loss A the bound is (√b + √A)², and what is expected A + b/3.
    """
    bound, aside = entry.get("bound"), (entry.get("facts") or {}).get("aside") or 0.0
    if bound is None or bound < 0 or aside < 0:
        return None
    around = max(sqrt(bound) - sqrt(aside), 0.0) ** 2
    return aside + around / 3


def as_float(number: int | float | None) -> float | None:
    """Return a number of JSON, where whole ones may be integers, as a float."""
    return None if number is None else float(number)


def significant(number: float | None) -> float | None:
    """Return a number rounded to as many digits as report.json has."""
    return None if number is None else float(f"{number:.{SIGNIFICANT}g}")


def kinds_of(names: Sequence[str]) -> dict[str, str]:
    """Return name -> kind: its name behind the block's number, with "*" for other numbers.

    Where there are several towers of blocks, the part before the number stays. A layer outside of
    the blocks is a kind of its own.
    """
    masked = {name: masked_numbers(name) for name in names}
    towers = {name.partition("*")[0] for name in masked.values() if "*" in name}

    def kind(name: str) -> str:
        if "*" not in name:
            return name.rpartition(".")[2] if len(towers) < 2 else name
        return name.partition("*.")[2] if len(towers) == 1 else name

    return {name: kind(each) or name for name, each in masked.items()}


def unit_of_expert(name: str) -> str:
    """Return the name that the experts' layers of one kind were probed under together."""
    parts = name.rsplit(".", 2)
    return f"{parts[0]}.{parts[2]}" if len(parts) == 3 and parts[1].isdecimal() else ""


def block_of(name: str) -> int | None:
    """Return the first part of a name that is a number, which is that of its block."""
    parts = (part for part in name.split(".") if part.isascii() and part.isdecimal())
    return next((int(part[:LONGEST_NUMBER]) for part in parts), None)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10."""
    return [(len(p) if i % 2 else 0, p) for i, p in enumerate(NUMBER.split(name))]
