"""The table of costs: what each part of a run computes, moves and starts, and what bounds it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nearplane.model.compute_dtype import name_of
from nearplane.plan.part import Part
from nearplane.plan.throughput import Throughput

# field of Throughput -> the column that its amounts are added up in
COLUMN = {
    "forward_flops": "products",
    "attention_flops": "products",
    "gram_flops": "products",
    "float32_flops": "float32",
    "solve_flops": "float32",
    "float64_flops": "float64",
    "factor_flops": "float64",
    "moved_bytes": "memory",
    "host_bytes": "link",
    "launches": "launches",
}
# of what is not a column: what it is that bounds a part
BOUND = {
    "coded_weights": "host's cores",
    "coded_matrices": "host's cores",
    "read_bytes": "disk",
    "write_bytes": "disk",
    "link_bytes": "network",
    "link_messages": "network",
}
UNITS = {"launches": 1e3, "memory": 1e9, "link": 1e9}
FLOPS = 1e12
WIDTH = 24  # of the names of lines


@dataclass
class CostLine:
    """A line of the table.

    - `amounts`: column -> flops, bytes or launches of the busiest process.
    - `bounds`: what bounds it -> the seconds for which it does.
    """

    name: str
    amounts: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.bounds.values())

    @property
    def bound(self) -> str:
        """What bounds it for the longest time."""
        return max(self.bounds, key=lambda bound: self.bounds[bound])

    def add(self, part: Part, rates: Throughput) -> None:
        """Count a part in this line."""
        for rate, amount in part.amounts.items():
            if rate in COLUMN:
                column = COLUMN[rate]
                self.amounts[column] = self.amounts.get(column, 0.0) + amount
        bound = bound_of(part, rates)
        self.bounds[bound] = self.bounds.get(bound, 0.0) + part.seconds(rates)


def bound_of(part: Part, rates: Throughput) -> str:
    """Return what bounds a part: a column of the table, or what is none."""
    rate = part.bound(rates)
    return COLUMN.get(rate) or BOUND[rate]


def cost_lines(parts: Sequence[Part], rates: Throughput) -> list[CostLine]:
    """Return the lines of the table, in the order of the parts; their seconds add up to the parts'.

    Parts that follow each other and have one name share a line.
    """
    lines: dict[str, CostLine] = {}
    for part in parts:
        lines.setdefault(part.line, CostLine(part.line)).add(part, rates)
    return list(lines.values())


def table(
    parts: Sequence[Part], rates: Throughput, dtype: torch.dtype, start_s: float
) -> list[str]:
    """Return the table for people, at most 100 characters wide.

    - `dtype`: the type of a model's products. `start_s`: seconds before the first part.
    """
    lines = cost_lines(parts, rates)
    names = ["products", "float32", "float64", "memory", "link", "launches"]
    titles = [name_of(dtype), "float32", "float64", "memory", "link", "launches"]
    found = [
        f"{'':{WIDTH}}{'TFLOP':^27}{'GB':^18}".rstrip(),
        f"{'by one process':{WIDTH}}{columns(titles)}{'seconds':>8}  bound by",
    ]
    for line in sorted(lines, key=lambda line: -line.seconds):
        cells = [line.amounts.get(name, 0.0) / UNITS.get(name, FLOPS) for name in names]
        numbers = [
            short(cell) + "k" * bool(cell and name == "launches")
            for name, cell in zip(names, cells, strict=True)
        ]
        bound = titles[names.index(line.bound)] if line.bound in names else line.bound
        found.append(f"{line.name:{WIDTH}}{columns(numbers)}{short(line.seconds):>8}  {bound}")
    total = start_s + sum(line.seconds for line in lines)
    nothing = columns([""] * len(names))
    found.append(f"{'start':{WIDTH}}{nothing}{short(start_s):>8}  {BOUND['coded_weights']}")
    return [*found, f"{'all':{WIDTH}}{nothing}{short(total):>8}"]


def columns(cells: Sequence[str]) -> str:
    """Return cells of a line, right-aligned."""
    return "".join(f"{cell:>9}" for cell in cells)


def short(number: float) -> str:
    """Return a number with about three digits; "-" for none."""
    if not number:
        return "-"
    return (
        f"{number:,.0f}" if number >= 99.95 else f"{number:.2g}" if number < 1 else f"{number:.1f}"
    )
