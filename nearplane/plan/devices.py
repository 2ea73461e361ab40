"""Devices to plan for: this machine, which is measured, and accelerators, by their data sheets."""

from dataclasses import dataclass
from math import inf

import torch

from nearplane.model.compute_dtype import name_of
from nearplane.plan.survey import Survey
from nearplane.plan.throughput import MachineBenchmark, MethodTrial, Throughput
from nearplane.types import NearplaneError
from nearplane.walk.device import AUTO, chosen_device

# bytes a second of this machine, assumed: a measurement would only see the disk's cache
READ_BYTES, WRITE_BYTES, LINK_BYTES = 1e9, 0.5e9, 1e9
MESSAGES = 1e4  # a second, one after the other; two processes here take 75 µs for a small one
# bytes a second for each accelerator of a server with several
SERVER_READ_BYTES, SERVER_WRITE_BYTES = 2e9, 1e9
NODE = 8  # accelerators that one server joins
NETWORK_BYTES = 50e9  # 400 Gbit/s for each accelerator, between servers
HOST_MEMORY = 200e9  # bytes of a server's memory for each accelerator
# of a server's cores for each accelerator, and how many times as fast they count and code integers
HOST_THREADS, HOST_TIMES = 8, 4.0
LAUNCH_S = 7e-6  # from one operator of torch to the next, where the GPU is done sooner
# assumed shares of peak rates: of the link between accelerators, of that to the host, of memory
LINKED = 0.7
HOSTED = 0.7
MOVED = 0.6
# field of `Throughput` -> the share of a peak that is assumed, and the type whose peak it is
SHARES = {
    "forward_flops": (0.5, "bfloat16"),
    "attention_flops": (0.3, "bfloat16"),
    "gram_flops": (0.5, "bfloat16"),
    "float32_flops": (0.6, "float32"),
    "solve_flops": (0.25, "float32"),
    "float64_flops": (0.6, "float64"),
    "factor_flops": (0.3, "float64"),
}


@dataclass(frozen=True)
class Device:
    """The public peak numbers of an accelerator, in units a second; dense, no sparsity.

    - `peaks`: flops of "bfloat16", "float32" (no TF32) and "float64" (no tensor cores).
    - `moves`: bytes to and from its memory. `link`: bytes to others in a server, one way.
    - `host`: bytes to the CPU. `network`: bytes to another server.
    """

    title: str
    peaks: dict[str, float]
    memory_bytes: float
    moves: float
    link: float
    host: float
    network: float = NETWORK_BYTES

    def peak(self, rate: str) -> float | None:
        """Return the peak of a field of `Throughput`; None for one that has none."""
        moving = {"moved_bytes": self.moves, "host_bytes": self.host, "link_bytes": self.link}
        return self.peaks[SHARES[rate][1]] if rate in SHARES else moving.get(rate)


def peaks(bfloat16: float, float32: float, float64: float) -> dict[str, float]:
    """Return the peak flops of an accelerator by type."""
    return {"bfloat16": bfloat16, "float32": float32, "float64": float64}


ETHERNET = 12.5e9  # 100 Gbit/s
# from NVIDIA's data sheets, SXM boards where there are any; B200 is an eighth of an HGX B200;
# bfloat16 with sums in float32
DEVICES = {
    "a100": Device("A100 SXM 80 GB", peaks(312e12, 19.5e12, 9.7e12), 80e9, 2.04e12, 300e9, 32e9),
    "b200": Device("B200 180 GB", peaks(2250e12, 75e12, 37e12), 180e9, 7.7e12, 900e9, 64e9),
    "h100": Device("H100 SXM 80 GB", peaks(989e12, 67e12, 34e12), 80e9, 3.35e12, 450e9, 64e9),
    "h200": Device("H200 SXM 141 GB", peaks(989e12, 67e12, 34e12), 141e9, 4.8e12, 450e9, 64e9),
    "l40s": Device(
        "L40S 48 GB", peaks(362e12, 91.6e12, 1.43e12), 48e9, 864e9, 32e9, 32e9, ETHERNET
    ),
    "rtx3090": Device(
        "RTX 3090 24 GB", peaks(71e12, 35.6e12, 0.556e12), 24e9, 936e9, 56e9, 32e9, ETHERNET
    ),
    "rtx4090": Device(
        "RTX 4090 24 GB", peaks(165e12, 82.6e12, 1.29e12), 24e9, 1.01e12, 32e9, 32e9, ETHERNET
    ),
}
CPU, HERE = "cpu", "here"


def known(name: str) -> torch.device | None:
    """Return the device of a name here, None for one that is projected.

    - `name`: of `DEVICES`; "here" is an accelerator of this machine, or its CPU; else torch's name.

    Raises NearplaneError if there is none of that name.
    """
    if name in DEVICES:
        return None
    try:
        return chosen_device(AUTO if name == HERE else name)
    except NearplaneError as error:
        raise NearplaneError(f"{error}; projected are {', '.join(sorted(DEVICES))}") from error


def name_of_device(title: str) -> str | None:
    """Return the name in `DEVICES` of a GPU that torch calls `title`; None if it is none of them.

    A board for PCIe has other peaks than the one of its name for SXM.
    """
    flat = title.lower().replace(" ", "")
    if "pcie" in flat or "nvl" in flat:
        return None
    return next((name for name in DEVICES if name in flat), None)


def stated_throughput(name: str, ranks: int, trial: MethodTrial) -> Throughput:
    """Return the rates of an accelerator that is one of `ranks`, from its data sheet.

    - `trial`: on one core of this machine, which stands for the host's, where coding is done.
    """
    return rates_of(DEVICES[name], ranks, trial)


def rates_of(device: Device, ranks: int, trial: MethodTrial) -> Throughput:
    """Return the rates of a device that is one of `ranks`, from its peaks."""
    stated = {rate: share * device.peaks[kind] for rate, (share, kind) in SHARES.items()}
    return Throughput(
        **stated,
        moved_bytes=MOVED * device.moves,
        coded_weights=trial.coded_weights,
        coded_matrices=trial.coded_matrices,
        read_bytes=SERVER_READ_BYTES,
        write_bytes=SERVER_WRITE_BYTES,
        link_bytes=LINKED * (device.link if ranks <= NODE else device.network),
        link_messages=MESSAGES,
        host_bytes=HOSTED * device.host,
        launches=1 / LAUNCH_S,
    )


def measured_throughput(
    survey: Survey, length: int, trial: MethodTrial, device: torch.device
) -> Throughput:
    """Measure the rates of one process on a device of this machine; takes about a second."""
    bench = MachineBenchmark.of(survey, length, device)
    return Throughput(
        forward_flops=bench.forward_flops(),
        attention_flops=bench.attention_flops(),
        moved_bytes=bench.moved_bytes(),
        gram_flops=bench.gram_flops(),
        float32_flops=bench.float32_flops(),
        solve_flops=trial.solve_flops,
        float64_flops=trial.float64_flops,
        factor_flops=bench.factor_flops(survey.method),
        coded_weights=trial.coded_weights,
        coded_matrices=trial.coded_matrices,
        read_bytes=READ_BYTES,
        write_bytes=WRITE_BYTES,
        link_bytes=LINK_BYTES,
        link_messages=MESSAGES,
        host_bytes=inf if device.type == CPU else bench.host_bytes(),
    )


def measured_lines(
    rates: Throughput, trial: MethodTrial, dtype: torch.dtype, ranks: int, device: torch.device
) -> list[str]:
    """Return what was measured and what was not, for people."""
    kind = name_of(dtype)
    where = threads() if device.type == CPU else str(device)
    host = "" if device.type == CPU else f", {rates.host_bytes / 1e9:.1f} to {device}"
    link = f"; between processes {rates.link_bytes / 1e9:g} and {MESSAGE}" if ranks > 1 else ""
    return [
        f"measured just now, on {where}, in GFLOP/s: calibration "
        f"{rates.forward_flops / 1e9:.0f} ({kind}), attention {rates.attention_flops / 1e9:.0f}, "
        f"Hessians {rates.gram_flops / 1e9:.0f}, targets {rates.float32_flops / 1e9:.0f} "
        f"(float32), rounding {rates.solve_flops / 1e9:.1f}, certificates "
        f"{rates.float64_flops / 1e9:.0f} and factors {rates.factor_flops / 1e9:.0f} (float64)",
        f"measured just now: {rates.moved_bytes / 1e9:.1f} GB/s between products{host}; "
        f"{coded(trial)}",
        f"assumed, in GB/s: {rates.read_bytes / 1e9:g} from disk, {rates.write_bytes / 1e9:g} to it"
        f"{link}",
    ]


MESSAGE = f"{1e3 / MESSAGES:g} ms a message"


def coded(trial: MethodTrial) -> str:
    """Return the rates of searches and packing, for people."""
    return (
        f"searches and packing {trial.one_core / 1e6:.1f} million weights/s and "
        f"{1e3 * trial.matrix_s:.0f} ms a matrix; {trial.sweeps:.1f} sweeps a matrix"
    )


def stated_lines(name: str, rates: Throughput, trial: MethodTrial, ranks: int) -> list[str]:
    """Return the assumptions on an accelerator, each with the parts of a run that rest on it."""
    device = DEVICES[name]
    lines = [
        f"a projection: nothing here was measured on an {device.title}, on which nearplane was not "
        "run yet"
    ]
    for kind, peak in device.peaks.items():
        shares = [
            f"{share:g} for {DECIDES[rate]}" for rate, (share, of) in SHARES.items() if of == kind
        ]
        lines.append(f"assumed of {peak / 1e12:g} TFLOP/s in {kind}: {', '.join(shares)}")
    between = device.link if ranks <= NODE else device.network
    link = f"{between / 1e9:g} {'in a server' if ranks <= NODE else 'between servers'}"
    times = f"{HOST_THREADS} threads count and code integers {trial.threads:g} times as fast"
    threaded = [f"assumed: {times}"] if trial.threads > 1 else []
    joined = f", {LINKED:g} of {link} and {MESSAGE} between processes" if ranks > 1 else ""
    return [
        *lines,
        f"assumed, in GB/s: {MOVED:g} of {device.moves / 1e9:g} of memory between products, "
        f"{HOSTED:g} of {device.host / 1e9:g} to the host, {rates.read_bytes / 1e9:g} from disk to "
        f"each process, {rates.write_bytes / 1e9:g} to it{joined}; {1e6 * LAUNCH_S:g} µs from the "
        "launch of a kernel to the next, where it is done sooner",
        f"on the host, by one core a process, as measured on this one just now: {coded(trial)}",
        *threaded,
    ]


def threads() -> str:
    """Return how many threads this process uses, for people."""
    count = torch.get_num_threads()
    return f"{count} threads" if count > 1 else "one thread"


DECIDES = {
    "forward_flops": "calibration and probing",
    "attention_flops": "attention",
    "gram_flops": "Hessians",
    "float32_flops": "targets",
    "solve_flops": "rounding",
    "float64_flops": "certificates",
    "factor_flops": "factors",
}
