"""Predict the time, memory and disk that a run takes, with the assumptions behind them."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from nearplane.model.positions import check_positions
from nearplane.model.process_memory import available_bytes
from nearplane.plan.costs import table
from nearplane.plan.devices import (
    CPU,
    DEVICES,
    HOST_MEMORY,
    HOST_TIMES,
    known,
    measured_lines,
    measured_throughput,
    stated_lines,
    stated_throughput,
    threads,
)
from nearplane.plan.footprint import unfinished_bytes
from nearplane.plan.memory import Memory
from nearplane.plan.method_launches import counted
from nearplane.plan.offload import Offload, choose_offload, choose_with_device
from nearplane.plan.part import OffloadCost, Part
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey, bits_of
from nearplane.plan.throughput import SMALLEST, MethodTrial, Throughput, tried
from nearplane.plan.work import Sizes, network_bytes, parts_of
from nearplane.types import NearplaneError
from nearplane.walk.calibration import MOST_TOKENS, default_length, default_sequences
from nearplane.walk.device import USABLE, Accelerator
from nearplane.walk.precision import Precision

START_S = 6  # Python's and its libraries' start, opening the model, reading the text
TRIED_COLUMNS = 1024
MOVING = ("reading", "writing")  # groups of parts that may be beside all others
# factors of accuracy: stated for time; the worst of docs/SCALE.md's runs; stated for memory
WITHIN, OFF, MEMORY_WITHIN = 1.5, 1.2, 2


@dataclass(frozen=True)
class Estimate:
    """What a run would take."""

    survey: Survey
    run: RunSize
    rates: Throughput
    trial: MethodTrial
    device: str = CPU
    allowed: int | None = None
    accelerator: Accelerator | None = None

    @cached_property
    def parts(self) -> list[Part]:
        return parts_of(self.survey, self.run, self.trial, self.offload_cost)

    @property
    def offload_cost(self) -> OffloadCost:
        means = self.offload
        again = 1 - means.paused / means.batches
        reads = means.ahead and means.reads
        moved = means.by_blocks, means.spilled, means.on_host, reads, means.ahead
        return OffloadCost(again, *moved)

    @property
    def groups(self) -> dict[str, float]:
        """Group of parts -> the seconds that a run takes for it.

        Of what is beside the work on blocks, what takes longer than that.
        """
        groups = self.grouped([part for part in self.parts if not part.overlapped])
        work = sum(seconds for group, seconds in groups.items() if group not in MOVING)
        overlapped = self.overlapped
        if overlapped:
            longest = max(overlapped, key=lambda group: overlapped[group])
            groups[longest] += max(0.0, overlapped[longest] - work)
        return groups

    @property
    def overlapped(self) -> dict[str, float]:
        """Group -> the seconds that it takes beside the work on blocks."""
        return self.grouped([part for part in self.parts if part.overlapped])

    def grouped(self, parts: list[Part]) -> dict[str, float]:
        seconds_of_group: dict[str, float] = {}
        for part in parts:
            seconds_of_group[part.group] = seconds_of_group.get(part.group, 0.0) + part.seconds(
                self.rates
            )
        return seconds_of_group

    @property
    def spent_seconds(self) -> float:
        """The seconds that all processes are busy; not what is done beside other work."""
        ranks = self.run.ranks
        parts = (part for part in self.parts if not part.overlapped)
        return START_S * ranks + sum(part.spent(self.rates, ranks) for part in parts)

    @property
    def seconds(self) -> float:
        """The seconds until the checkpoint is written; every part waits for the busiest process."""
        return START_S + sum(self.groups.values())

    @cached_property
    def offload(self) -> Offload:
        """The offload; NearplaneError if the run cannot stay within `allowed`."""
        promised = self.allowed is not None
        allowed = self.capacity if self.allowed is None else self.allowed
        if self.accelerator is None:
            return choose_offload(self.survey, self.run, allowed, promised)
        return choose_with_device(self.survey, self.run, allowed, self.accelerator, promised)

    @property
    def memory(self) -> Memory:
        return self.offload.memory

    @property
    def peak_bytes(self) -> int:
        return round(self.memory.total)

    @property
    def unfinished_bytes(self) -> int | float:
        return unfinished_bytes(self.survey)

    @property
    def network_bytes(self) -> int | float:
        """The bytes that each process receives from the others."""
        return network_bytes(Sizes(self.survey, self.run), self.trial)

    @property
    def alone(self) -> "Estimate":
        """The same run by one process."""
        return replace(self, run=replace(self.run, ranks=1))

    @property
    def allowance(self) -> str:
        """The memory that a process may use, for people."""
        if self.allowed is not None:
            return f"{self.allowed / 1e9:.2f} GB allowed"
        each = " to each" if self.run.ranks > 1 else ""
        return f"{self.capacity / 1e9:.1f} GB available{each}"

    @property
    def capacity(self) -> int | float:
        """The bytes of memory that a process can have; processes share this machine's."""
        if self.device in DEVICES:
            return DEVICES[self.device].memory_bytes if self.accelerator is None else HOST_MEMORY
        return available_bytes() / self.run.ranks

    def with_sequences(self, sequences: int) -> "Estimate":
        """Return the same run on so many sequences."""
        return replace(self, run=replace(self.run, sequences=sequences))

    def within(self, seconds: float) -> "Estimate":
        """Return the same run on the most sequences that take no longer than `seconds`.

        Not more than MOST_TOKENS. Raises NearplaneError if one for each process takes longer.
        """
        fewest, length = self.run.ranks, self.run.length
        most = max(MOST_TOKENS // length, fewest)
        least = self.with_sequences(fewest)
        if least.seconds > seconds:
            raise NearplaneError(
                f"{duration(seconds)} are too little for {self.survey.name}: with {fewest} x "
                f"{length} tokens this run takes about {duration(least.seconds)}; give more --time "
                "or a smaller --length"
            )
        while fewest < most:
            middle = (fewest + most + 1) // 2
            fits = self.with_sequences(middle).seconds <= seconds
            fewest, most = (middle, most) if fits else (fewest, middle - 1)
        return self.with_sequences(fewest)

    def time_sentence(self, seconds: float) -> str:
        """Return in one line how much calibration fits in a time."""
        run = self.run
        said = f"{run.sequences} x {run.length} tokens, in about {duration(self.seconds)}"
        more = "; more tokens help little" if run.tokens + run.length > MOST_TOKENS else ""
        return f"{duration(seconds)} are enough for a calibration on {said}{more}"

    def lines(self) -> list[str]:
        """Return the estimate for people, with what it assumes."""
        lines = [*self.size_lines(), *self.time_lines(), *self.assumptions()]
        if self.trial.sweeps == 0 and self.survey.method.sweeps:
            lines.append(
                f"note: {self.survey.method.name} sweeps in a way of its own, counted as coding: "
                f"too little for layers wider than {tried_columns(self.survey)} columns"
            )
        if self.peak_bytes > self.capacity:
            stated = self.device in DEVICES
            whose = f"one {self.device} has" if stated else "this machine has available"
            lines.append(f"warning: that is more memory than {whose}")
        there, limit = self.offload.device, self.accelerator
        if there is not None and limit is not None and there.total > limit.allowed:
            lines.append(f"warning: that is more memory than {self.device} has free")
        return lines + self.survey.selection.left_out()

    def size_lines(self) -> list[str]:
        survey, memory = self.survey, self.memory
        lines = [
            survey.sentence(),
            f"bits per quantized weight: {bits_of(survey):.3f} ({survey.method.name})",
            f"disk: {survey.stored_bytes / 1e9:.3f} GB, and while it runs "
            f"{self.unfinished_bytes / 1e9:.3f} GB of finished layers",
            f"peak memory: about {memory.total / 1e9:.2f} GB a process ({memory.sentence()}) of "
            f"{self.allowance}",
            f"  {self.offload.sentence()}",
            f"  {self.offload.precision()}",
        ]
        there, limit = self.offload.device, self.accelerator
        if there is not None and limit is not None:
            lines.append(
                f"memory of {self.device}: about {there.total / 1e9:.2f} GB ({there.sentence()}) "
                f"of {limit.allowed / 1e9:.1f} GB"
            )
        if self.run.ranks > 1:
            lines.append(f"network: {self.network_bytes / 1e9:,.1f} GB sent to each process")
        return lines

    def time_lines(self) -> list[str]:
        where = f"on {threads()}" if self.device == CPU else self.device
        ranks = self.run.ranks
        if ranks == 1:
            first = f"time: about {duration(self.seconds)} by one process, {where}"
        else:
            times = self.alone.seconds / self.seconds
            first = (
                f"time: about {duration(self.seconds)} by {ranks} processes, {where}; "
                f"{times:.1f} times as fast as one in as much memory"
            )
        return [first, *self.group_lines()]

    def table(self) -> list[str]:
        """Return what each part computes, moves and starts, and what bounds it."""
        return table(self.parts, self.rates, self.survey.compute, START_S)

    def group_lines(self) -> list[str]:
        """Return a line for every group of parts."""
        one = replace(self.run, ranks=1)
        parts = parts_of(self.survey, one, self.trial, self.offload_cost)
        alone = self.grouped([part for part in parts if not part.overlapped])
        shared = {part.group for part in self.parts if part.share is not None}
        lines = []
        for group, seconds in self.groups.items():
            line = f"  {group}: {duration(seconds)}, {seconds / self.seconds:.0%}"
            if group in ("writing", "exchange") or self.run.ranks == 1:
                lines.append(line)
            elif group in shared and seconds:
                lines.append(f"{line}, {alone[group] / seconds:.1f} times as fast as by one")
            else:
                lines.append(f"{line}, repeated by each")
        return lines

    def overlap_sentence(self) -> str:
        """Say which parts are beside the work on blocks, and are not among the times above."""
        some = [f"{group} of {duration(seconds)}" for group, seconds in self.overlapped.items()]
        return f", but for {' and '.join(some)} beside the work on blocks" if some else ""

    def assumptions(self) -> list[str]:
        run = self.run
        lines = [
            f"assumed: {run.sequences} sequences of {run.length} tokens, "
            f"{len(self.survey.stages)} Hessians; parts follow each other{self.overlap_sentence()}"
        ]
        if self.device not in DEVICES:
            where = torch.device(CPU) if self.accelerator is None else self.accelerator.device
            lines += measured_lines(self.rates, self.trial, self.survey.compute, run.ranks, where)
            return [*lines, expected(run.ranks)]
        lines += stated_lines(self.device, self.rates, self.trial, run.ranks)
        return [*lines, "expect the right order of magnitude, not more"]


def expected(ranks: int) -> str:
    """Return how far a prediction for this machine may be off."""
    if ranks > 1:
        return (
            "expect the right order of magnitude, not more: two processes of one machine were "
            "compared with runs, several machines were not"
        )
    return (
        f"expect time within a factor of {WITHIN:g} for small models on one thread, where four "
        f"runs were off by up to {OFF:g}, and memory within {MEMORY_WITHIN:g}; the right order of "
        "magnitude beyond"
    )


def estimate(
    survey: Survey,
    sequences: int | None = None,
    length: int | None = None,
    ranks: int = 1,
    device: str = CPU,
    allowed: int | None = None,
    device_memory: int | None = None,
) -> Estimate:
    """Return what a run would take; measures this machine for two seconds.

    - `sequences`, `length`: the defaults of `walk.calibration` if None.
    - `device`: see `devices.known`; the rates of those that are projected are from data sheets.
    - `allowed`: bytes of memory that a process may use; None is all available.
    - `device_memory`: bytes of the device that it may use; None is all that are free.

    Raises NearplaneError for an unknown device, no process, or more processes than sequences.
    """
    here = known(device)
    length = default_length(survey.model) if length is None else length
    check_positions(survey.model, length, "--length")
    if sequences is None:
        sequences = default_sequences(survey.widest, max(length, 1), ranks)
    run = RunSize(sequences, length, ranks)
    if here is None:
        # whether this machine is slow in the stored type does not matter for another one
        survey = replace(survey, compute=survey.dtype)
        trial = tried_on_one_core(survey)
        rates = stated_throughput(device, ranks, trial)
        limit = projected(device, device_memory)
        return Estimate(survey, run, rates, trial, device, allowed, limit)
    limit = Accelerator.of(here, device_memory)
    survey = survey if limit is None else replace(survey, compute=survey.dtype)
    precision = Precision(here)
    with precision.kept():
        precision.choose(survey.widest)
        trial = tried(survey.method, tried_columns(survey), here)
        rates = measured_throughput(survey, run.length, trial, here)
    name = CPU if limit is None else str(here)
    limit = limit and replace(limit, helped=precision.devices.cubic.type == CPU)
    return Estimate(survey, run, rates, trial, name, allowed, limit)


def projected(name: str, device_memory: int | None) -> Accelerator:
    """Return an accelerator of a data sheet, and how much of its memory a run may use."""
    free = USABLE * DEVICES[name].memory_bytes
    return Accelerator(torch.device("cuda"), min(free, device_memory or free), promised=False)


def tried_on_one_core(survey: Survey) -> MethodTrial:
    """Return the method's trial by one core, as the host of an accelerator has for each of them.

    Its operators, which run on the accelerator, are counted and not timed. Meanwhile all operations
    of torch in this process run on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trial = tried(survey.method, tried_columns(survey), on_host=True)
        rows = {layer.shape[0] for layer in survey.layers}
        return replace(trial, launches=counted(survey.method, rows), threads=HOST_TIMES)
    finally:
        torch.set_num_threads(threads)


def tried_columns(survey: Survey) -> int:
    """Return the columns of a trial: the mean over weights, in SMALLEST .. TRIED_COLUMNS."""
    weights = sum(rows * columns for rows, columns in (la.shape for la in survey.layers))
    mean = sum(la.shape[0] * la.shape[1] ** 2 for la in survey.layers) / weights
    return int(min(max(mean, SMALLEST), TRIED_COLUMNS))


def duration(seconds: int | float) -> str:
    """Return a time that people can read."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
