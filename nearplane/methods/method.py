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
class Aim:
    """What to come near to in place of the weight, under the same Hessian, and facts about it."""

    target: Float[Tensor, "rows columns"]
    facts: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """Fields are hyper-parameters; calling it quantizes one layer. Subclasses register themselves.

    `order` and `damping`, where a method has them, say on which basis it rounds; the others
    still report their loss on the natural one.
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
        """Return the basis this method rounds on; layers that share inputs can share it."""
        return lattice.basis(
            hessian, getattr(self, "order", "natural"), getattr(self, "damping", 0.01)
        )

    def check(self, rows: int, columns: int) -> None:  # noqa: B027 - most methods fit any shape
        """Raise NearplaneError if no matrix of this shape can meet the method's target."""

    @property
    def compensates(self) -> bool:
        """Whether a walk should run the original model beside, and give aims."""
        return getattr(self, "cross", False)

    @property
    def allocates(self) -> bool:
        """Whether a walk should probe the layers, and give each a rate of its own."""
        return getattr(self, "allocate", False)

    def floor(self, rows: int, columns: int) -> float:
        """Return the fewest bits per weight that a matrix of this shape can be stored in."""
        return 0.0

    def quantize_together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Return every weight quantized; a method may do them in one go where that is faster."""
        return [self.quantize(weight, basis) for weight in weights]

    @abstractmethod
    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        """Return `weight`, finite and at least float32, on the lattice of `basis`."""

    def aimed(self, weight: Float[Tensor, "rows columns"], basis: Basis, aim: Aim) -> Any:
        """Return `weight` quantized so that it comes near to `aim`; losses are of `weight`."""
        if aim.target is not weight:
            raise NearplaneError(f"{self.name} rounds a layer on its own weights only")
        return self.together([weight], basis)[0]

    def drawn_error(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, bpw: float, draws: Any
    ) -> Float[Tensor, "rows columns"]:
        """Return an error such as rounding `weight` at `bpw` would leave, drawn at random."""
        raise NotImplementedError(f"{self.name} draws no errors")

    def at(self, bpw: float) -> "Method":
        """Return the same method at another rate."""
        return dataclasses.replace(self, bpw=bpw)  # pyright: ignore[reportCallIssue]

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
