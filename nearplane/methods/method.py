"""What every method is: a frozen dataclass of its hyper-parameters that quantizes one layer."""

import dataclasses
from abc import ABC, abstractmethod
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
    """A hyper-parameter lies outside what the method can do."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A matrix that a layer is rounded towards in place of its weight, and facts for the report.

    It makes up for what the layer's inputs lost in the layers before it (`lattice.cross_target`).
    """

    matrix: Float[Tensor, "rows columns"]
    facts: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """Fields are hyper-parameters; calling it quantizes one layer. Subclasses register themselves.

    A subclass in a file of its own is a method everywhere: `quantize`, `plan`, the command line,
    the report and the contract tests ask it what it is through the properties below.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()
        METHODS[cls.name] = cls

    def __call__(
        self, weight: Float[Tensor, "rows columns"], hessian: Tensor | Basis
    ) -> QuantizedWeight:
        """Return `weight` on a lattice, for inputs with second moment `hessian`.

        - `hessian`: (columns, columns), mean of x xᵀ over tokens, or the `basis` made of it.

        Raises NearplaneError when the weight holds NaN, the shapes differ or the target cannot
        be met.
        """
        basis = hessian if isinstance(hessian, Basis) else self.basis(hessian)
        return self.together([weight], basis)[0]

    def together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Return weights that share their inputs, as calling the method on each would."""
        return self.quantize_together([self.checked(weight, basis) for weight in weights], basis)

    def checked(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> Tensor:
        """Return `weight` in at least float32; raises NearplaneError if it cannot be quantized."""
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
        """Return the basis this method rounds on; layers that share inputs can share it.

        Methods that round on no lattice report their loss on this one.
        """
        return lattice.basis(hessian, "natural", 0.01)

    def check(self, rows: int, columns: int) -> None:  # noqa: B027 - most methods fit any shape
        """Raise NearplaneError if no matrix of this shape can meet the method's target."""

    # what a planner and a walk ask of a method before it has quantized anything

    @abstractmethod
    def stored_bytes(self, rows: int, columns: int) -> float:
        """Return about the bytes that the record of a matrix of this shape takes."""

    @property
    def rate(self) -> float | None:
        """The bits per weight that the method is asked to meet; None if it has no such target."""
        return None

    def at(self, bpw: float) -> "Method":
        """Return the same method at another rate; NearplaneError if it has none."""
        raise NearplaneError(f"{self.name} has no rate that could be another")

    @property
    def sweeps(self) -> bool:
        """Whether it goes over the columns one after the other, each after the earlier errors."""
        return False

    @property
    def compensates(self) -> bool:
        """Whether a walk should run the original model beside, and give targets."""
        return False

    @property
    def allocates(self) -> bool:
        """Whether a walk should measure how sensitive layers are, and give each its own rate."""
        return False

    # of one layer, beside its sweeps and its certificate: triangular solves of n² / 2 a row; and
    # certificates more where it is rounded towards a target
    triangular_solves: ClassVar[int] = 0
    target_certificates: ClassVar[int] = 0

    def floor(self, rows: int, columns: int) -> float:
        """Return the fewest bits per weight that a matrix of this shape can be stored in."""
        return 0.0

    def quantize_together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Return every weight quantized; a method may do them in one go where that is faster."""
        return [self.quantize(weight, basis) for weight in weights]

    @abstractmethod
    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        """Return `weight`, finite and at least float32, on the lattice of `basis`."""

    def quantize_towards(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, target: Target
    ) -> Any:
        """Return `weight` quantized so that it comes near to `target`; losses are of `weight`."""
        if target.matrix is not weight:
            raise NearplaneError(f"{self.name} rounds a layer on its own weights only")
        return self.together([weight], basis)[0]

    def drawn_error(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, bpw: float, draws: Any
    ) -> Float[Tensor, "rows columns"]:
        """Return an error such as rounding `weight` at `bpw` would leave, drawn at random."""
        raise NotImplementedError(f"{self.name} draws no errors")

    def recipe(self) -> dict[str, Any]:
        """Return the method's name and fields, ready for JSON."""
        return {"method": self.name} | dataclasses.asdict(self)


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
