"""The base class of every method: a frozen dataclass of hyper-parameters that quantizes a layer."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import lattice
from nearplane.lattice import Basis
from nearplane.rows import in_parts
from nearplane.types import NearplaneError, QuantizedWeight

METHODS: dict[str, type["Method"]] = {}


class OutOfRangeError(NearplaneError, ValueError):
    """A hyper-parameter lies outside the range that the method accepts."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a layer is rounded towards: its weight or another matrix, and what its rows matter.

    - `matrix`: may compensate for the errors of quantized layers in front (`lattice.cross_target`).
    - `facts`: numbers for the report.
    - `row_step`: factors of the rows' steps, larger where errors matter less; None for equal ones.
    - `output_hessian`: the mean of g gᵀ over tokens, where g is the gradient of the model's loss
      with respect to the layer's output, or its diagonal blocks; empty where outputs count alike.
    """

    matrix: Float[Tensor, "rows columns"]
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    row_step: Float[Tensor, "rows 1"] | None = None
    output_hessian: Sequence[Float[Tensor, "some some"]] = ()


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """A quantization method: its fields are hyper-parameters, calling it quantizes one layer.

    Subclasses are frozen dataclasses. Defining one registers it in METHODS under its lower-case
    name; `quantize`, `plan`, the command line, the report and the contract tests then offer it.
    They learn from the properties below what it needs.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, registered: bool = True) -> None:
        cls.name = cls.__name__.lower()
        if registered:
            METHODS[cls.name] = cls

    def __call__(
        self, weight: Float[Tensor, "rows columns"], hessian: Tensor | Basis
    ) -> QuantizedWeight:
        """Return `weight` quantized, for inputs with second moment `hessian`.

        - `hessian`: (columns, columns), the mean of x xᵀ over tokens, or the `Basis` of it.

        Raises NearplaneError when the weight holds NaN, the shapes do not fit or the target rate
        cannot be met.
        """
        basis = hessian if isinstance(hessian, Basis) else self.basis(hessian)
        return self.together([weight], basis)[0]

    def together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Quantize weights that share their inputs; the results are those of calling it on each."""
        return self.quantize_together([self.checked(weight, basis) for weight in weights], basis)

    def checked(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> Tensor:
        """Return `weight` in float32 or float64; raise NearplaneError if it cannot be quantized."""
        if weight.ndim != 2 or weight.shape[1] != len(basis.factor):
            raise NearplaneError(
                f"a weight of shape {tuple(weight.shape)} does not fit a Hessian of "
                f"{len(basis.factor)} columns"
            )
        if not is_finite(weight):
            raise NearplaneError("the weight holds NaN or infinite values")
        self.check(*weight.shape)
        return weight if weight.dtype == torch.float64 else weight.float()

    def basis(self, hessian: Float[Tensor, "columns columns"]) -> Basis:
        """Return the basis that this method rounds on; layers that share inputs share it.

        Methods that round to nearest only measure their loss with it.
        """
        return lattice.basis(hessian, "natural", 0.01)

    def check(self, rows: int, columns: int) -> None:  # noqa: B027 - most methods fit any shape
        """Raise NearplaneError if no matrix of this shape can meet the method's target rate."""

    # what `plan` and `quantize` need to know of a method before it has quantized anything

    @abstractmethod
    def stored_bytes(self, rows: int, columns: int) -> float:
        """Return an estimate of the bytes that the record of a matrix of this shape takes."""

    @property
    def rate(self) -> float | None:
        """The target rate in bits per weight; None for a method that has none."""
        return None

    def rates(self, columns: int) -> Mapping[float, float] | None:
        """Return the only rates that a layer of so many columns may have; None for any.

        And at what rate integers of one step, entropy-coded, would err as much.
        """
        return None

    def with_bpw(self, bpw: float) -> "Method":
        """Return the method with another target rate; raise NearplaneError if it has none."""
        raise NearplaneError(f"{self.name} has no rate that could be another")

    @property
    def sweeps(self) -> bool:
        """Whether it rounds column by column, as nearest plane does; `plan` measures how long."""
        return False

    @property
    def compensates(self) -> bool:
        """Whether it rounds towards targets, for which `quantize` also runs the original model."""
        return False

    @property
    def scales_rows(self) -> bool:
        """Whether the rows' steps of an embedding or output head can be given (`Target`)."""
        return False

    @property
    def weighs_outputs(self) -> bool:
        """Whether it takes output Hessians (`Target`), for which `quantize` takes gradients."""
        return False

    @property
    def allocates(self) -> bool:
        """Whether each layer gets its own rate, for which `quantize` measures sensitivities."""
        return False

    # for `plan`, per layer: triangular solves of n² / 2 multiply-adds a row, and how many more
    # losses are measured where the layer is rounded towards a target
    triangular_solves: ClassVar[int] = 0
    target_certificates: ClassVar[int] = 0
    # and of an accelerator: bytes a weight while a layer is rounded, beside original, target and
    # integers; whether layers that share inputs are rounded at once
    rounding_bytes: ClassVar[int] = 20
    rounds_together: ClassVar[bool] = False

    def floor(self, rows: int, columns: int) -> float:
        """Return the fewest bits per weight at which a matrix of this shape can be stored."""
        return 0.0

    def quantize_together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Quantize several weights; a method overrides it if doing so at once is faster."""
        return [self.quantize(weight, basis) for weight in weights]

    @abstractmethod
    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        """Return `weight` quantized; it has passed `checked`."""

    def quantize_towards(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, target: Target
    ) -> Any:
        """Round towards `target`; the result's losses and bounds are with respect to `weight`."""
        plain = target.row_step is None and not target.output_hessian
        if target.matrix is not weight or not plain:
            raise NearplaneError(f"{self.name} rounds a layer on its own weights only")
        return self.together([weight], basis)[0]

    def drawn_error(
        self, target: Target, basis: Basis, bpw: float, draws: Any
    ) -> Float[Tensor, "rows columns"]:
        """Return a random error with the distribution of what rounding `target` at `bpw` leaves.

        - `draws`: the torch.Generator to draw from.
        """
        raise NotImplementedError(f"{self.name} draws no errors")

    def recipe(self) -> dict[str, Any]:
        """Return the method's name and fields, ready for JSON."""
        return {"method": self.name} | dataclasses.asdict(self)


class LatticeMethod(Method, registered=False):
    """A method that rounds column after column on the lattice of an ordered, damped Hessian.

    - `order`: of the columns; `damping`: the fraction of the mean diagonal that is added.
    """

    order: str
    damping: float

    def basis(self, hessian: Float[Tensor, "columns columns"]) -> Basis:
        return lattice.basis(hessian, self.order, self.damping)

    @property
    def sweeps(self) -> bool:
        return True


class RateMethod(Method, registered=False):
    """A method that meets a rate.

    - `bpw`: bits per weight of everything stored, an upper limit.
    """

    bpw: float

    @property
    def rate(self) -> float:
        return self.bpw

    def with_bpw(self, bpw: float) -> "RateMethod":
        return dataclasses.replace(self, bpw=bpw)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return rows * columns * self.bpw / 8


def is_finite(weight: Float[Tensor, "rows columns"]) -> bool:
    """Return whether no entry is NaN or infinite."""
    parts = in_parts(lambda rows: (torch.isfinite(weight[rows]).all(),), len(weight))
    return all(bool(part) for (part,) in parts)


def from_recipe(recipe: dict[str, Any]) -> Method:
    """Return the method that `Method.recipe` describes; raises NearplaneError if none does."""
    fields = dict(recipe)
    name = fields.pop("method", None)
    if name not in METHODS:
        raise NearplaneError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    try:
        return METHODS[name](**fields)
    except TypeError as error:
        raise NearplaneError(f"{name} does not take these options: {error}") from error


def check_range(name: str, value: int | float, low: int | float, high: int | float) -> None:
    """Raise OutOfRangeError unless low <= value <= high."""
    if not low <= value <= high:
        raise OutOfRangeError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")


def check_order(order: str) -> None:
    """Raise OutOfRangeError unless `order` names an order."""
    if order not in lattice.ORDERS:
        raise OutOfRangeError(f"order must be one of {', '.join(lattice.ORDERS)}, not {order!r}")
