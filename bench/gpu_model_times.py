"""What `nearplane plan` expects of the parts that bench/gpu_quantize.py times, beside the times."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nearplane as npl
from nearplane.model.selection import Rules
from nearplane.plan.costs import bound_of
from nearplane.plan.devices import DEVICES, Device, rates_of
from nearplane.plan.estimate import tried_on_one_core
from nearplane.plan.part import Part
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey, survey
from nearplane.plan.throughput import MethodTrial, Throughput
from nearplane.plan.work import FORWARDS, parts_of

METHODS = npl.HPTQ(bpw=3.1), npl.ECLQ(bpw=3.1)
GROUPS = {"forward": "calibration", "Hessians": "Hessians", "factors": "factors"}
ROUNDED = "rounding", "coding"


def compared(
    found: Iterable[Any], shape: tuple[int, ...], tokens: int, title: str, sheet: str | None
) -> list[str]:
    """Return a line for every timed part: its time, the model's, and the share of a peak.

    - `found`: each with `part` and `seconds`. `sheet`: a name in DEVICES; None if it has none.
    """
    found = list(found)
    if sheet is None:
        plain = [f"{each.part:20} {1e3 * each.seconds:10.2f} ms" for each in found]
        return [*plain, f"nearplane plan knows no data sheet of {title}: nothing to compare with"]
    device, times = DEVICES[sheet], ModelTimes(shape, tokens, DEVICES[sheet])
    lines = [f"{'':20} {'ms':>10} {'model, ms':>10} {'ratio':>7}  reached"]
    for each in found:
        parts, rates = times.of(each.part)
        expected = sum(part.seconds(rates) for part in parts)
        lines.append(
            f"{each.part:20} {1e3 * each.seconds:10.3g} {1e3 * expected:10.3g} "
            f"{each.seconds / expected:7.2g}  {reached(parts, rates, each.seconds, device)}"
        )
    return [*lines, f"model: nearplane plan --device {sheet}, for the {device.title}"]


class ModelTimes:
    """The parts that a plan counts for one block of a Llama."""

    def __init__(self, shape: tuple[int, ...], tokens: int, device: Device):
        self.shape, self.tokens, self.device = shape, tokens, device
        self.trials: dict[str, MethodTrial] = {}

    def of(self, part: str) -> tuple[list[Part], Throughput]:
        """Return the parts of a timed part, and the rates they run at."""
        if part in GROUPS:
            name, rows, group = "hptq", None, (GROUPS[part],)
        else:
            name, size, *_ = part.split()
            rows, group = int(size), ROUNDED
        method = next(method for method in METHODS if method.name == name)
        found = self.surveyed(method, rows)
        if name not in self.trials:
            # of the whole block, so that all layers' rows are counted
            self.trials[name] = tried_on_one_core(self.surveyed(method, None))
        trial = self.trials[name]
        parts = [p for p in parts_of(found, RunSize(1, self.tokens), trial) if p.group in group]
        if part == "forward":
            # a run passes its tokens a little more often than once
            parts = [scaled(each, 1 / FORWARDS) for each in parts]
        return parts, rates_of(self.device, 1, trial)

    def surveyed(self, method: Any, rows: int | None) -> Survey:
        """Return a survey of one block; of one layer of so many rows, unless these are None."""
        hidden, inner, heads, kv_heads, _ = self.shape
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1}
        config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        config |= {"vocab_size": 320, "dtype": "bfloat16"}
        others = () if rows is None else [each for each in LAYERS if each != LAYER[rows == inner]]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            rules = Rules(keep=("embedding", "head"), skip=tuple(others))
            return survey(folder, method, rules, bare=True)


LAYERS = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
LAYER = {False: "q_proj", True: "up_proj"}


def scaled(part: Part, by: float) -> Part:
    """Return a part of `by` times as much work."""
    beside = {rate: by * amount for rate, amount in part.beside.items()}
    return Part(part.group, part.rate, by * part.amount, part.share, part.name, beside)


def reached(parts: list[Part], rates: Throughput, seconds: float, device: Device) -> str:
    """Return what bounds most of the model's time, and which share of that was reached."""
    spent: dict[str, float] = {}
    for part in parts:
        bound = part.bound(rates)
        spent[bound] = spent.get(bound, 0.0) + part.seconds(rates)
    rate = max(spent, key=lambda each: spent[each])
    amount = sum(part.amounts.get(rate, 0.0) for part in parts)
    named = bound_of(next(part for part in parts if part.bound(rates) == rate), rates)
    named = "bfloat16" if named == "products" else named
    peak = device.peak(rate)
    if peak is not None:
        return f"bound by {named}: {amount / seconds / peak:.0%} of its peak"
    each = f": {1e6 * seconds / amount:.2g} µs each" if rate == "launches" and amount else ""
    return f"bound by {named}{each}"
