"""What bench/quality.py compares: every row's settings, and the command that makes its checkpoint.

This file imports only the standard library: a child's peak memory starts at its parent's.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FLAGSHIP = "eclq"
# fields of the flagship that are changed one row at a time, by --ablation
ABLATIONS: list[dict[str, Any]] = [
    {"slope": 0.0},
    {"unequal": False},
    {"contexts": False},
    {"cross": False},
    {"two_sided": False},
    {"allocate": False},
    {"paths": 4},
]
ABLATION_RATE = 2.5

LABELS = {
    "bf16": "bf16",
    "rtn": "RTN",
    "gptq": "GPTQ",
    "ssqr": "SSQR",
    "hrtn": "HRTN",
    "hptq": "HPTQ",
    "watersic": "WaterSIC",
    "eclq": "ECLQ",
    "gptqmodel": "GPTQModel",
    "llmcompressor": "llm-compressor",
    "autoround": "AutoRound",
    "llamacpp": "llama.cpp",
}
# of nearplane's methods, those that take a rate and those that take bits and groups
BY_RATE = ("hrtn", "hptq", "watersic", FLAGSHIP)
BY_BITS: dict[str, dict[str, Any]] = {"rtn": {}, "gptq": {}, "ssqr": {"outliers": 0.01}}
PEERS = {
    "gptqmodel": "GPTQ, damping 0.01 and static order, which are not its defaults",
    "llmcompressor": "GPTQ, damping 0.01 and static order, its defaults",
    "autoround": "no damping and no order; {iterations}",
}
# llama.cpp's file types with the bits per weight of their blocks, mixtures and fallbacks aside
LLAMA_TYPES = {
    "IQ2_XXS": 2.06,
    "IQ2_XS": 2.31,
    "IQ2_S": 2.56,
    "Q2_K": 2.63,
    "IQ3_XXS": 3.06,
    "Q3_K_S": 3.44,
    "Q3_K_M": 3.44,
    "IQ4_XS": 4.25,
    "Q4_0": 4.5,
    "Q4_K_S": 4.5,
}
# also quantized as llama.cpp does it where blocks of 256 do not divide the columns
UNFOLDED = ("Q2_K", "Q4_K_S")
LLAMA_NOTE = "importance matrix of the same tokens; its own blocks and mixture of types"
BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Row:
    """One model to measure.

    - `name`: no other row has it.
    - `peer`: in whose environment `command` runs; "" is nearplane's own.
    - `command`: a file of bench/peers and its arguments, with {model}, {tokens}, {out}, {threads}
      and {prepared} to be filled in; empty for the model as it is.
    - `fold`: of llama.cpp: whether rows are folded so that its blocks divide the columns.
    """

    name: str
    method: str
    setting: str
    peer: str = ""
    command: tuple[str, ...] = ()
    fold: bool = False
    note: str = ""

    @property
    def title(self) -> str:
        return f"{LABELS.get(self.method, self.method)} {self.setting}".strip()


@dataclasses.dataclass(frozen=True)
class CalibrationRequest:
    """What the rows depend on.

    - `columns`: the different numbers of columns of the model's linear layers.
    - `ablation`: the rates at which the flagship's fields are changed.
    - `iterations`: of AutoRound; None is its default.
    """

    rates: list[float]
    group_size: int
    columns: set[int]
    ablation: list[float]
    iterations: int | None = None

    @property
    def bits(self) -> list[int]:
        """The whole bits below the rates, for methods that take bits and groups."""
        return sorted({int(rate) for rate in self.rates})


def all_rows(wanted: CalibrationRequest) -> list[Row]:
    """Return every row: the model as it is, nearplane's methods, the peers."""
    made = [Row("bf16", "bf16", "", note="the model as it is")]
    for method, fields in BY_BITS.items():
        for bits in wanted.bits:
            recipe = {"bits": bits, "group_size": wanted.group_size, **fields}
            made.append(ours(f"{method}-{bits}", method, f"{bits} bits", recipe))
    for method in BY_RATE:
        made += [ours(f"{method}-{r:g}", method, f"{r:g}", {"bpw": r}) for r in wanted.rates]
    for rate in wanted.ablation:
        made += [ablated(rate, change) for change in ABLATIONS]
    return made + peer_rows(wanted) + llama_rows(wanted)


def ours(name: str, method: str, setting: str, fields: dict[str, Any]) -> Row:
    """Return the row of one of nearplane's methods."""
    recipe = json.dumps({"method": method, **fields})
    command = ("nearplane_run.py", "{model}", "{tokens}", "{out}", recipe)
    return Row(name, method, setting, command=command)


def ablated(rate: float, change: dict[str, Any]) -> Row:
    """Return the row of the flagship with some of its fields changed."""
    said = ", ".join(f"{field}={value}" for field, value in change.items())
    name = f"{FLAGSHIP}-{rate:g}+{said.replace(', ', '+')}"
    return ours(name, FLAGSHIP, f"{rate:g}, {said}", {"bpw": rate, **change})


def peer_rows(wanted: CalibrationRequest) -> list[Row]:
    """Return the rows of the peers that take bits and groups."""
    made = []
    given = wanted.iterations
    iterations = "its default iterations" if given is None else f"{given} iterations, NOT its 200"
    for peer, note in PEERS.items():
        for bits in wanted.bits:
            command = [f"{peer}_run.py", "{model}", "{tokens}", "{out}", "--bits", str(bits)]
            command += ["--group-size", str(wanted.group_size)]
            if peer == "autoround" and given is not None:
                command += ["--iterations", str(given)]
            said = note.format(iterations=iterations)
            row = Row(f"{peer}-{bits}", peer, f"{bits} bits", peer, tuple(command), note=said)
            made.append(row)
    return made


def llama_rows(wanted: CalibrationRequest) -> list[Row]:
    """Return the rows of llama.cpp's types that are about as large as the rates."""
    low, high = math.floor(min(wanted.rates)), math.ceil(max(wanted.rates))
    types = [name for name, bits in LLAMA_TYPES.items() if low <= bits <= high]
    if all(columns % BLOCK == 0 for columns in wanted.columns):
        return [llama_row(name, fold=False, note=LLAMA_NOTE) for name in types]
    folded = f"{LLAMA_NOTE}; rows folded to multiples of {BLOCK} columns"
    larger = f"{LLAMA_NOTE}; columns are no multiples of {BLOCK}: larger types instead"
    made = [llama_row(name, fold=not name.endswith("_0"), note=folded) for name in types]
    return made + [llama_row(n, fold=False, note=larger) for n in types if n in UNFOLDED]


def llama_row(name: str, fold: bool, note: str) -> Row:
    """Return the row of one of llama.cpp's file types."""
    command = ("llamacpp_run.py", "{prepared}", "{out}", "--type", name, "--threads", "{threads}")
    if name.endswith("_0"):
        note = LLAMA_NOTE  # blocks of 32 divide the columns of every model
    fold_mark = ", folded" if fold else ""
    unique = f"llamacpp-{name}{'-folded' if fold else ''}"
    return Row(unique, "llamacpp", f"{name}{fold_mark}", "llamacpp", command, fold, note)


def chosen(rows: Iterable[Row], only: list[str] | None, skip: list[str]) -> list[Row]:
    """Return the rows whose name or method is in `only`, if given, and not in `skip`."""
    rows = list(rows)
    known = {part for row in rows for part in (row.name, row.method)}
    if unknown := [name for name in [*(only or []), *skip] if name not in known]:
        raise SystemExit(f"no row or method is called {unknown[0]!r}; there are: {sorted(known)}")
    kept = [row for row in rows if only is None or row.name in only or row.method in only]
    return [row for row in kept if row.name not in skip and row.method not in skip]


def columns_of(model: Path) -> set[int]:
    """Return the different numbers of columns of a model's linear layers, from its files alone."""
    found = set()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        for name, tensor in header.items():
            shape = tensor.get("shape", ())
            if re.search(r"\.\d+\..*\.weight$", name) and len(shape) == 2:
                found.add(shape[1])
    if not found:
        raise SystemExit(f"{model} holds no safetensors file with linear layers in blocks")
    return found


def group_size_for(columns: set[int]) -> int:
    """Return the largest group that every tool packs and that divides all columns."""
    for size in (128, 64, 32):
        if all(n % size == 0 for n in columns):
            return size
    raise SystemExit(f"neither 128 nor 64 nor 32 divides all of the columns {sorted(columns)}")
