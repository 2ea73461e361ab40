"""The device that a run computes on: asked for by name, and checked before it is used."""

import gc
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nearplane.lattice import Prices, factor, nearest_plane, order, rate_aware_plane
from nearplane.lattice.cross_target import Moments, RidgeChoice, ridge_targets
from nearplane.lattice.float64 import narrowed
from nearplane.methods.rate import drawn_pull
from nearplane.types import NearplaneError, first_line
from nearplane.walk.hidden_states import CPU
from nearplane.walk.precision import Precision

AUTO = "auto"
ROWS, COLUMNS = 48, 96  # of the matrix that is rounded for a check
STEP = 0.25
MOST_APART = 1e-3  # share of integers that may differ: those of values half-way between two
USABLE = 0.9  # of the memory that is free
FURTHEST = 1e-5  # relative difference of products that are computed in float32


@dataclass(frozen=True)
class Accelerator:
    """A device beside the CPU, and how many bytes of its memory a run may hold.

    - `promised`: whether a run that needs more is refused; else it takes as little as it can.
    - `helped`: whether the CPU factors Hessians for it, as far as is known.
    """

    device: torch.device
    allowed: int | float
    promised: bool = True
    helped: bool = False

    @classmethod
    def of(
        cls, device: torch.device, allowed: int | None = None, promised: bool = True
    ) -> "Accelerator | None":
        """Return a device with what is free of its memory, or what is allowed; None for the CPU."""
        if device == CPU:
            return None
        free = free_bytes(device)
        bytes_ = [each for each in (free, allowed) if each is not None]
        return cls(device, min(bytes_, default=float("inf")), promised)


def chosen_device(name: str) -> torch.device:
    """Return the device of a name: "cpu", "cuda", "cuda:1", "xpu" ..., or "auto".

    "auto" is an accelerator that rounds as the CPU does, else the CPU.

    Raises NearplaneError for a device that is not there, or that computes something else.
    """
    if name == AUTO:
        found = torch.accelerator.current_accelerator() if accelerated() else None
        return CPU if found is None or problem_of(numbered(found)) else numbered(found)
    try:
        device = numbered(torch.device(name))
    except (RuntimeError, AttributeError) as error:
        raise NearplaneError(
            f"--device {name}: torch knows no such device here ({first_line(error)}); auto and cpu "
            "are there"
        ) from error
    problem = "" if device == CPU else problem_of(device)
    if problem:
        raise NearplaneError(f"--device {name} cannot be used: {problem}; --device cpu can")
    return device


def accelerated() -> bool:
    """Whether torch has an accelerator here."""
    return torch.accelerator.is_available()


def numbered(device: torch.device) -> torch.device:
    """Return a device with its number, as tensors on it name it; the CPU has none.

    Raises RuntimeError or AttributeError if torch knows no such device here.
    """
    if device.type in ("cpu", "meta"):
        if device.type == "meta":
            raise RuntimeError("meta tensors hold no numbers")
        return CPU
    module = torch.get_device_module(device)
    count = module.device_count()
    if device.index is not None and processes() > 1:
        raise RuntimeError(
            f"{processes()} processes cannot share a device: {device.type} gives each its own"
        )
    index = local_rank() if device.index is None else device.index
    if index >= count:
        raise RuntimeError(f"{count} {device.type} devices are there")
    getattr(module, "set_device", lambda index: None)(index)
    return torch.device(device.type, index)


def processes() -> int:
    """Return how many processes quantize together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> int:
    """Return the number of this process among those that torchrun started on this machine."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return 0
    return importlib.import_module("torch.distributed.distributed_c10d").get_node_local_rank(0)


def problem_of(device: torch.device) -> str:
    """Return why a device cannot be used; "" if it multiplies, factors and rounds as the CPU does.

    Takes a second.
    """
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=draws)
    inputs = torch.randn(4 * COLUMNS, COLUMNS, generator=draws)
    try:
        with Precision(device).kept():
            own, there = (rounded(weight.to(d), inputs.to(d)) for d in (CPU, device))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return f"a small matrix could not be rounded on it ({first_line(error)})"
    hessians = [pair[0].cpu() for pair in (own, there)]
    off = float((hessians[0] - hessians[1]).norm() / hessians[0].norm())
    if not off <= FURTHEST:
        return f"its products in float32 are off by {off:.1e}: is TF32 switched on?"
    apart = float((own[1] != there[1].cpu()).double().mean())
    if apart > MOST_APART:
        return f"{apart:.1%} of the integers of a small matrix are others than on the CPU"
    return ""


def rounded(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a Hessian, and the integers of a target that is rounded on its lattice."""
    hessian = inputs.T @ inputs / len(inputs)
    columns = order(hessian, "activation").flip(0)
    triangle = factor(hessian, columns.flip(0), 0.01)
    place = torch.arange(COLUMNS, device=weight.device)
    step = STEP * (1 + place[None] % 3 / 4)
    given, moments = narrowed(triangle, weight), Moments(hessian, 0.9 * hessian)
    (moved,) = ridge_targets([weight], moments, [RidgeChoice(0.1, 0.5, 1.0)])
    target = moved[:, columns] + STEP * drawn_pull(given, len(weight))
    length = (torch.arange(18, device=weight.device) * 0.7 % 5).view(2, 9)
    prices = Prices(length, torch.zeros_like(place[:ROWS]), place % 2)
    codes = nearest_plane(target, given, step, -2, 1), rate_aware_plane(target, given, step, prices)
    return hessian, torch.stack(codes)


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes of a device's memory a run may plan with; None if torch is silent.

    Libraries need some for themselves, and memory is lost between tensors.
    """
    try:
        return int(USABLE * torch.get_device_module(device).mem_get_info(device)[0])
    except (RuntimeError, AttributeError, NotImplementedError):
        return None


def empty_cache() -> None:
    """Give back what torch keeps of the accelerator's memory for later, and what frames held."""
    gc.collect()
    device = torch.accelerator.current_accelerator()
    if device is not None:
        getattr(torch.get_device_module(device), "empty_cache", lambda: None)()


def most_held() -> int | None:
    """Return the most bytes of the accelerator that this process held; None: torch is silent."""
    try:
        return torch.get_device_module().max_memory_allocated()
    except (RuntimeError, AttributeError, NotImplementedError):
        return None


def with_less_if_full(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Let a run whose device ran out of memory go on once, with half of what it held.

    What waits inside a block is then computed again, or hidden states are kept elsewhere: neither
    changes results. If that is not enough, it goes on with as little as it can. Finished layers
    are those of the first try, so that the result is what it would have been.
    """

    @wraps(run)
    def quantize(*args: Any, **options: Any) -> dict[str, Any]:
        try:
            return run(*args, **options)
        except torch.OutOfMemoryError as error:
            # of several processes the others would wait for this one
            if options.get("least") or processes() > 1:
                raise NearplaneError(f"memory ran out: {first_line(error)}") from None
            reason, held = first_line(error), most_held()
        if options.get("watcher") is not None:
            options["watcher"].says(
                f"warning: the device's memory ran out ({reason}): the run goes on with half of "
                "what it held"
            )
        empty_cache()
        half = 1 if held is None else max(held // 2, 1)
        return quantize(*args, **options | {"resume": True, "device_memory": half, "least": True})

    return quantize
