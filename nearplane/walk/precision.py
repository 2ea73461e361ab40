"""How exactly a run computes: no TF32, and float64 on its device or the CPU, whichever is faster.

Data-centre GPUs do float64 at half the speed of float32, most others at a 64th, and Apple's not at
all. Factors and the products of certificates take n³ operations on n² numbers that would have to be
copied, so that which is faster is a matter of two machines: it is measured, once a run, and said.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch

from nearplane.lattice import basis
from nearplane.lattice.float64 import Float64Devices, float64_devices
from nearplane.methods.certificate import measure
from nearplane.precision import exact_products
from nearplane.walk.hidden_states import CPU
from nearplane.walk.ranks import ALONE, Ranks

MOST_COLUMNS = 2048  # that are measured on, however wide the model is
WARM_COLUMNS = 64  # of the first, which libraries begin with
TRIES, MEASURE_S = 3, 0.15  # the shortest time of so many tries, or of those that fit in these
SUBJECT = "factors and certificates, in float64, are"
MARGIN = 1.5  # times as fast the CPU has to be: else two runs might differ in their last digits


@dataclass
class Precision:
    """How exactly a run computes on a device: TF32 is off, and float64 work is on it or on the CPU.

    A device without float64 leaves all of that to the CPU. On another one, what is in proportion
    to the numbers that it reads stays there, and `choose` decides on factors and certificates.

    - `says`: called with what was chosen, if there was a choice.
    """

    device: torch.device
    says: Callable[[str], None] = lambda sentence: None
    devices: Float64Devices = field(init=False)

    def __post_init__(self) -> None:
        where = self.device if has_float64(self.device) else CPU
        self.devices = Float64Devices(where, where)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Compute so inside a `with` block."""
        float64 = float64_devices.within(lambda _: self.devices, lambda given: given == self.device)
        with exact_products(self.device), float64:
            yield

    def choose(self, columns: int, ranks: Ranks = ALONE, earlier: Any = None) -> None:
        """Measure where factors and certificates of so many columns are computed sooner.

        All processes do as the first one.

        - `earlier`: the settings of the run that is resumed, whose choice is kept on a device of
          the same kind; or None.
        """
        if self.devices.kept == CPU:
            if self.device != CPU:
                self.says(f"{self.device} has no float64: {SUBJECT} computed on the CPU")
            return
        columns, known = min(columns, MOST_COLUMNS), chosen_before(earlier, self.device)
        why = "as in the run that is resumed"
        if ranks.first and not known:
            own, host = self.measured(columns)
            known = CPU.type if MARGIN * host < own else self.device.type
            times = f"{own:.2g} s on {self.device}, {host:.2g} s on the CPU with copies"
            why = f"as one of each with {columns} columns took {times}"
        known = (ranks.bytes_of_first(known.encode()) or b"").decode()
        cubic = CPU if known == CPU.type else self.device
        self.devices = Float64Devices(self.device, cubic)
        self.says(f"{SUBJECT} computed on {'the CPU' if cubic == CPU else cubic}, {why}")

    @property
    def recorded(self) -> dict[str, str]:
        """What the results of a run depend on, for its settings."""
        return {"float64": self.devices.cubic.type}

    def measured(self, columns: int) -> tuple[float, float]:
        """Return the seconds of the device, and of the CPU with copies there and back."""
        own, host = (Float64Devices(self.device, cubic) for cubic in (self.device, CPU))
        return cubic_seconds(columns, own), cubic_seconds(columns, host)


def chosen_before(earlier: Any, device: torch.device) -> str:
    """Return the kind of device that an earlier run chose on one of this kind; "" if none did."""
    same = isinstance(earlier, dict) and earlier.get("device") == device.type
    known = earlier.get("float64") if same else None
    return known if known in (CPU.type, device.type) else ""


def has_float64(device: torch.device) -> bool:
    """Whether a device holds tensors in float64."""
    try:
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return False
    return True


def cubic_seconds(columns: int, devices: Float64Devices) -> float:
    """Return the seconds of a factor and a certificate of a square matrix of so many columns."""
    device, best = devices.kept, inf
    with float64_devices.within(lambda _: devices, lambda given: given == device):
        factor_and_certificate(WARM_COLUMNS, device)
        began = time.perf_counter()
        for _ in range(TRIES):
            best = min(best, factor_and_certificate(columns, device))
            if time.perf_counter() - began > MEASURE_S:
                break
    return best


def factor_and_certificate(columns: int, device: torch.device) -> float:
    """Return the seconds of a factor and a certificate of a square matrix on a device."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.rand(columns, columns, generator=draws).to(device)
    hessian = torch.eye(columns, device=device) + weight / columns
    torch.accelerator.synchronize(device)
    started = time.perf_counter()
    measure(weight, lambda rows: weight[rows].round(), basis(hessian, "natural", 0.01))
    torch.accelerator.synchronize(device)
    return time.perf_counter() - started
