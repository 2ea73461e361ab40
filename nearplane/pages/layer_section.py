"""Two-dimensional sections of a real layer's lattice: one row, all but two integers held."""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from nearplane import codes, lattice, types
from nearplane.export.checkpoint_reader import Checkpoint, open_checkpoint
from nearplane.lattice.basis import damped_hessian
from nearplane.methods.steps import code_range
from nearplane.types import NearplaneError

STRONGEST = 6  # pairs of columns that are offered because their inputs go together
FAR = 1e3  # steps from the chosen integers that a box is cut off at


@dataclass(frozen=True)
class Row:
    """One row of a stored layer: value = step · code − minimum.

    `sparse` marks columns that have an outlier beside the integer.
    """

    code: Int64[Tensor, " columns"]
    step: Float64[Tensor, " columns"]
    value: Float64[Tensor, " columns"]
    sparse: Tensor
    limits: tuple[int | None, int | None]
    damping: float
    order: str
    minimum: Float64[Tensor, " columns"] | None = None

    def raised(self, weight: Float64[Tensor, " columns"]) -> Float64[Tensor, " columns"]:
        """Return weight + minimum, which step · code approximates."""
        return weight if self.minimum is None else weight + self.minimum


def check_layer(directory: str, name: str, row: int) -> Checkpoint:
    """Return the open checkpoint; NearplaneError unless it stores that row of that layer."""
    checkpoint = open_checkpoint(directory)
    entry = checkpoint.layers.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, checkpoint.layers, 1, 0)
        hint = f"; there is {near[0]}" if near else ""
        raise NearplaneError(f"{directory} has no compressed layer {name!r}{hint}")
    if not 0 <= row < entry["rows"]:
        raise NearplaneError(f"{name} has rows 0 to {entry['rows'] - 1}, not {row}")
    return checkpoint


def stored_row(checkpoint: Checkpoint, name: str, row: int) -> Row:
    """Return one row as its record has it, and how the layer was rounded."""
    held = codes.unpack(checkpoint.record(name))
    entry = checkpoint.layers[name]
    value = held.value()[row]
    columns = entry["columns"]
    step = types.spread(held.step, held.group_size, columns).double()
    step = step[row if len(step) > 1 else 0].expand(columns)
    if held.row_step is not None:
        step = step * held.row_step[row].double()
    minimum = None
    if held.minimum is not None:
        minimum = types.spread(held.minimum, held.group_size, columns)[row].double()
    recipe = checkpoint.config["quantization_config"].get("recipe") or {}
    facts = entry.get("facts") or {}
    bits = recipe.get("bits") if recipe.get("method") in ("rtn", "gptq", "ssqr") else None
    sparse = torch.zeros(columns, dtype=torch.bool)
    if held.outliers is not None:
        first, last = held.outliers.start[row : row + 2].tolist()
        sparse[held.outliers.column[first:last].long()] = True
    damping = facts.get("damping")
    return Row(
        held.code[row].long(),
        step,
        value.double(),
        sparse,
        (None, None) if bits is None else code_range(bits),
        float(recipe.get("damping", 0.01) if damping is None else damping),
        recipe.get("order", "natural"),
        minimum,
    )


def sections(
    row: Row,
    weight: Float64[Tensor, " columns"],
    hessian: Float64[Tensor, "columns columns"],
    wanted: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return the numbers of a row, and sections through its lattice, ready for JSON.

    - `wanted`: two columns whose section comes first; by default the two that are rounded last.

    Raises NearplaneError for columns that are none, and NotPositiveDefiniteError.
    """
    check_columns(row, wanted)
    basis = lattice.basis(hessian, row.order, row.damping)
    damped = damped_hessian(basis)
    columns = basis.columns
    raised = row.raised(weight)
    target, step = raised[None, columns], row.step[None, columns]
    plane = lattice.nearest_plane(target, basis.factor, step, *row.limits)[0]
    error = weight - row.value
    plane_error = raised - row.step * plane[columns.argsort()]
    made = [
        section(title, pair, row, weight, damped, basis)
        for title, pair in pairs(row, damped, columns, wanted)
    ]
    return {
        "columns": len(weight),
        "damping": basis.damping,
        "order": row.order,
        "limits": row.limits,
        "same": int((plane[columns.argsort()] == row.code).sum()),
        "damped_loss": float(error @ damped @ error),
        "plane_loss": float(plane_error @ damped @ plane_error),
        "bound": float(lattice.bound(basis.factor, step)[0]),
        "sections": made,
    }


def check_columns(row: Row, wanted: tuple[int, int] | None) -> None:
    """Raise NearplaneError unless `wanted` are two columns without outliers."""
    if wanted is None:
        return
    last = len(row.code) - 1
    if wanted[0] == wanted[1] or not all(0 <= column <= last for column in wanted):
        raise NearplaneError(f"--columns must be two different ones of 0 to {last}")
    if row.sparse[list(wanted)].any():
        raise NearplaneError("one of --columns has an outlier in this row, which is no integer")


def pairs(
    row: Row, damped: Tensor, columns: Tensor, wanted: tuple[int, int] | None
) -> list[tuple[str, tuple[int, int]]]:
    """Return titles and pairs of columns: the wanted ones, the last two, the strongest pairs."""
    usable = [c for c in columns.tolist() if not row.sparse[c]]
    if len(usable) < 2:
        raise NearplaneError("this row has no two columns without an outlier")
    found = [] if wanted is None else [(f"columns {wanted[0]} and {wanted[1]}", wanted)]
    found.append(("the two columns rounded last", (usable[0], usable[1])))
    kept = torch.tensor(usable)
    scale = damped.diagonal()[kept].sqrt()
    correlation = (damped[kept][:, kept] / scale[:, None] / scale).triu(1).abs()
    for place in correlation.flatten().topk(min(STRONGEST, len(usable) - 1)).indices.tolist():
        a, b = usable[place // len(usable)], usable[place % len(usable)]
        share = float(correlation.flatten()[place])
        found.append((f"columns {a} and {b}: correlation {share:.2f}", (a, b)))
    return found


def section(
    title: str,
    pair: tuple[int, int],
    row: Row,
    weight: Tensor,
    damped: Tensor,
    basis: lattice.Basis,
) -> dict[str, Any]:
    """Return the section of the lattice where all integers but two are as stored.

    With a the two columns, o the others and e the errors there, the loss is that of the target
    t = w_a + H_aa⁻¹ H_ao e_o under H_aa, and what the others leave.
    """
    chosen = torch.tensor(pair)
    others = torch.ones(len(weight), dtype=torch.bool)
    others[chosen] = False
    error = weight - row.value
    within = damped[chosen][:, chosen]
    pull = torch.linalg.solve(within, damped[chosen][:, others] @ error[others])
    raised = row.raised(weight)[chosen]
    target = (raised + pull).tolist()
    box, outside = box_section(pair, row, error, basis)
    return {
        "title": title,
        "pair": pair,
        "hessian": within.tolist(),
        "step": row.step[chosen].tolist(),
        "code": row.code[chosen].tolist(),
        "weight": raised.tolist(),
        "target": target,
        # the corners are targets, too
        "box": [[t + move for t, move in zip(target, corner, strict=True)] for corner in box],
        "outside": outside,
    }


def box_section(
    pair: tuple[int, int], row: Row, error: Tensor, basis: lattice.Basis
) -> tuple[list[list[float]], int]:
    """Return how the two weights may move within the box around the stored integers.

    These are the corners of a convex polygon: |(R (error + move))_k| ≤ R_kk |step_k| / 2 for all
    columns k that depend on the two. None where it is empty. Also, in how many of all columns the
    row's residual is outside of its box now.
    """
    columns, factor = basis.columns, basis.factor
    places = columns.argsort()[torch.tensor(pair)]
    residual = factor @ error[columns]
    half = factor.diagonal() * row.step[columns].abs() / 2
    outside = int((residual.abs() > half * (1 + 1e-9)).sum())
    reach = FAR * row.step[torch.tensor(pair)].abs()
    (x, y) = reach.tolist()
    polygon = [[x, y], [-x, y], [-x, -y], [x, -y]]
    for k in range(int(places.max()) + 1):
        normal = factor[k, places].tolist()
        for sign in (1, -1):
            limit = float(half[k] - sign * residual[k])
            polygon = clipped(polygon, [sign * n for n in normal], limit)
            if not polygon:
                return [], outside
    return polygon, outside


def clipped(polygon: list[list[float]], normal: list[float], limit: float) -> list[list[float]]:
    """Return the part of a convex polygon where normal · corner ≤ limit."""
    beyond = [normal[0] * corner[0] + normal[1] * corner[1] - limit for corner in polygon]
    kept = []
    for k, corner in enumerate(polygon):
        other = (k + 1) % len(polygon)
        if beyond[k] <= 0:
            kept.append(corner)
        if (beyond[k] < 0) != (beyond[other] < 0) and beyond[k] != beyond[other]:
            share = beyond[k] / (beyond[k] - beyond[other])
            kept.append([a + share * (b - a) for a, b in zip(corner, polygon[other], strict=True)])
    return kept
