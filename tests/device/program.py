"""What a run on another device gives, in a process that has one (tests/device/fake_device.py).

    python -m tests.device.program CHECK [FAMILY ...]

Says what differs, and nothing else.
"""

import json
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import nearplane as npl
from nearplane.lattice.float64 import Float64Devices
from nearplane.methods import METHODS, Method
from nearplane.model.selection import Rules
from nearplane.pipeline import Watcher
from nearplane.plan.estimate import estimate
from nearplane.plan.footprint import MemoryNeeds
from nearplane.plan.offload import choose_with_device, ways_with_device
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import survey
from nearplane.types import NearplaneError
from nearplane.walk import device as device_file
from nearplane.walk import hessian as hessian_file
from nearplane.walk import walk as walk_file
from nearplane.walk.device import Accelerator, chosen_device
from nearplane.walk.hessian import HessianSum
from nearplane.walk.placement import Placement
from nearplane.walk.precision import Precision
from tests.device.fake_device import install
from tests.device.no_float64 import CUBIC, NoFloat64
from tests.families import zoo

TOKENS = torch.randint(3, 60, (6, 24), generator=torch.Generator().manual_seed(0))
METHODS_OF_ALL = [
    npl.HPTQ(bpw=9.5),
    npl.ECLQ(bpw=9.5),
    npl.GPTQ(bits=4, group_size=16),
    npl.SSQR(bits=3, group_size=16, outliers=0.02),
    npl.RTN(bits=4, group_size=16),
    npl.HRTN(bpw=9.5),
    npl.ECLQ(bpw=9.5, paths=3, two_sided=False, allocate=False),
    METHODS["watersic"](bpw=9.5),
    METHODS["gguf"](type="IQ4_NL"),
]
MOST_COPIES = 20  # of a model's weights: checks, passes and rounding each bring blocks anew


def saved(family: str, blocks: int | None = None) -> str:
    """Return the directory of a tiny random model, of its first blocks if a number is given."""
    path = Path(tempfile.mkdtemp()) / family
    model = zoo.tiny_model(family)
    if blocks is not None:
        del model.model.layers[blocks:]
        model.config.num_hidden_layers = blocks
    model.save_pretrained(path)
    return str(path)


def run(
    model: str, method: Method, device: str, tokens: Tensor = TOKENS, **options
) -> tuple[bytes, list[str]]:
    """Return the weight file that a run writes with its certificates, and what it says."""
    out, said = Path(tempfile.mkdtemp()) / "out", []
    same = {"arithmetic": "float32", "languages": False, "rules": Rules(fallback_share=1.0)}
    # the CPU has a kernel for attention that torch does not give to other devices
    with sdpa_kernel(SDPBackend.MATH), patch.object(walk_file, "BATCH_TOKENS", 48):
        watcher = Watcher(said.append)
        npl.quantize(model, out, method, tokens, device=device, watcher=watcher, **same | options)
    layers = json.loads((out / "report.json").read_bytes())["layers"]
    certificates = [[each[name] for name in ("loss", "damped_loss", "bound")] for each in layers]
    return (out / "model.safetensors").read_bytes() + json.dumps(certificates).encode(), said


def compare(model: str, method: Method, **options) -> str:
    """Return what is wrong when a model is quantized on the device; "" if nothing is."""
    expected, _ = run(model, method, "cpu")
    found, _ = run(model, method, "fake", **options)
    return "" if found == expected else f"{model} {method}: other bytes than on the CPU"


def families(*names: str) -> list[str]:
    """Quantize tiny models, on the device as on the CPU."""
    both = npl.HPTQ(bpw=9.5), npl.ECLQ(bpw=9.5, allocate=False)
    return [compare(saved(name), both[n % 2]) for n, name in enumerate(names)]


def methods() -> list[str]:
    """Quantize a model of one block by every method; `families` has models of several."""
    tried = {method.name for method in METHODS_OF_ALL}
    wrong = [f"{name} is not tried" for name in METHODS if name not in tried]
    model = saved("llama", 1)
    return wrong + [compare(model, method) for method in METHODS_OF_ALL]


def without_float64(*names: str) -> list[str]:
    """Refuse float64 on the device: quantize a matrix by every method, a model by those named."""
    wrong, draws = [], torch.Generator().manual_seed(0)
    for name, kind in METHODS.items():
        columns = 256 if name == "gguf" else 48
        weight, inputs = (torch.randn(n, columns, generator=draws) for n in (64, 300))
        here = weight, inputs.T @ inputs / len(inputs)
        there = [part.to("fake") for part in here]
        methods = [kind(bpw=9.0)] if name in ("eclq", "hptq", "hrtn", "watersic") else [kind()]
        methods += [kind(bpw=9.0, paths=3, order="min-pivot")] if name == "eclq" else []
        for method in methods:
            expected = method(*here)
            with NoFloat64(), Precision(there[0].device).kept():
                found = method(*there)
            for field in ("record", "loss", "damped_loss", "bound"):
                one, other = getattr(found, field), getattr(expected, field)
                same = one is other is None or torch.equal(*(nan_as(-1, t) for t in (one, other)))
                if not same:
                    wrong.append(f"{method}: another {field}")
    model = saved("llama")
    for method in (each for each in METHODS_OF_ALL if each.name in names):
        expected, _ = run(model, method, "cpu")
        with NoFloat64():
            found, said = run(model, method, "fake")
        wrong += [] if found == expected else [f"{method}: other bytes"]
        wrong += [] if "has no float64" in " ".join(said) else [f"not said: {said}"]
    return wrong


def nan_as(number: float, tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, with a number in the place of NaN, which equals nothing."""
    return tensor.cpu().nan_to_num(number)


def float64() -> list[str]:
    """Compute factors and certificates where that is faster, and the same wherever that is."""
    model, method, wrong = saved("llama"), npl.ECLQ(bpw=9.5, allocate=False), []
    expected, _ = run(model, method, "cpu")
    # seconds of the device and of the CPU, and whether the latter is taken
    for seconds, on_cpu in (((1.0, 0.1), True), ((1.0, 0.9), False), ((0.1, 1.0), False)):
        with ExitStack() as stack:

            def measured(*_: Any, seconds=seconds, stack=stack) -> tuple[float, float]:
                stack.enter_context(NoFloat64(CUBIC))
                return seconds

            stack.enter_context(patch.object(Precision, "measured", measured))
            refused = False
            try:
                found, said = run(model, method, "fake")
                wrong += [] if found == expected else ["other bytes with factors of the CPU"]
                wrong += [] if "computed on the CPU" in " ".join(said) else [f"not said: {said}"]
            except TypeError:
                refused = True
        wrong += [] if refused != on_cpu else [f"{seconds}: the other one is taken"]
    return wrong + resumed_choices()


def resumed_choices() -> list[str]:
    """A run that is resumed keeps the choice of the one before, on a device of the same kind."""
    wrong, own = [], chosen_device("fake")
    for kind in ("cpu", "fake"):
        work = Precision(own)
        with patch.object(Precision, "measured", side_effect=AssertionError("measured")):
            work.choose(64, earlier={"device": "fake", "float64": kind})
        wrong += [] if work.recorded == {"float64": kind} else [f"{kind}: {work.recorded}"]
    for earlier in (None, {}, {"device": "cuda", "float64": "cpu"}, {"device": "fake"}):
        with patch.object(Precision, "measured", return_value=Precision(own).measured(8)) as at:
            Precision(own).choose(64, earlier=earlier)
        wrong += [] if at.called and min(at.return_value) > 0 else [f"not measured: {earlier}"]
    return wrong


def narrow() -> list[str]:
    """Take 16-bit products for Hessians where they are as exact as those in float32."""
    wrong, inputs = [], torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = inputs.double().T @ inputs.double() / len(inputs)
    products = {
        "float32": (lambda left, right: left.float().T @ right.float(), True),
        "bfloat16": (lambda left, right: (left.T @ right).float(), False),
        "torch's": (hessian_file.narrow_product, False),
    }
    for name, (product, taken) in products.items():
        hessian_file.sums_in_float32.cache_clear()
        with patch.object(hessian_file, "narrow_product", side_effect=product) as called:
            total = HessianSum(40, chosen_device("fake"))
            total.add(inputs.to("fake"))
        found = total.mean().cpu().double()
        if (called.call_count > 1) != taken or not torch.allclose(found, wide, atol=1e-5):
            wrong.append(f"{name}: {called.call_count} calls, {(found - wide).abs().max()} off")
    hessian_file.sums_in_float32.cache_clear()
    return wrong


def places() -> list[str]:
    """Let hidden states be on the device, in the machine's memory, and in a file.

    And let blocks be read one by one, ahead of their use or not.
    """
    model, method = saved("llama"), npl.ECLQ(bpw=9.5, two_sided=False, allocate=False)
    expected, _ = run(model, method, "cpu")
    found = survey(model, method, arithmetic="float32")
    size = RunSize(len(TOKENS), TOKENS.shape[1], 1)
    seen, wrong = set(), []
    with patch.object(walk_file, "BATCH_TOKENS", 48):
        ways = list(ways_with_device(found, MemoryNeeds(found, size)))
    for way in ways:
        key = way.spilled, way.on_host, way.paused == way.batches
        if way.by_blocks:
            key = way.by_blocks, way.ahead
        if key in seen:
            continue
        seen.add(key)
        with patch("nearplane.pipeline.offload_for", lambda *_, way=way: way):
            memory.reset()
            bytes_, _ = run(model, method, "fake")
        wrong += [] if bytes_ == expected else [f"{key}: other bytes than on the CPU"]
    return wrong + ([] if len(seen) == 8 else [f"only {seen} were tried"])


def planned() -> list[str]:
    """Hold no more memory than is planned, and not much less."""
    wrong = []
    for family, method in (("llama", npl.ECLQ(bpw=9.5)), ("llama", npl.HPTQ(bpw=9.5))):
        model = saved(family)
        found = survey(model, method, arithmetic="float32")
        with patch.object(walk_file, "BATCH_TOKENS", 48):
            size = RunSize(len(TOKENS), TOKENS.shape[1], 1)
            limit = Accelerator(chosen_device("fake"), 1e12)
            expected = choose_with_device(found, size, 1e12, limit, False).device
        memory.reset()
        run(model, method, "fake")
        if not memory.peak / 1.2 <= expected.total <= 3 * memory.peak:
            wrong.append(f"{method}: planned {expected}, held {memory.peak}")
    return wrong


def refused() -> list[str]:
    """Refuse what cannot be done, in one sentence, before the work."""
    model, wrong = saved("llama"), []
    cases = [
        ({"device": "nowhere"}, "nowhere"),
        ({"device": "cuda"}, "cuda"),
        ({"device": "fake:3"}, "fake:3"),
        ({"device": "meta"}, "meta"),
        ({"device": "fake", "device_memory": 10_000}, "--device-memory"),
    ]
    for options, named in cases:
        try:
            run(model, npl.HPTQ(bpw=9.5), **options)
            wrong.append(f"{options} are not refused")
        except NearplaneError as error:
            if named not in str(error) or "\n" in str(error):
                wrong.append(f"{options}: {error}")
    with patch.object(device_file, "processes", lambda: 2):
        try:
            chosen_device("fake:0")
            wrong.append("a device that two processes would share is not refused")
        except NearplaneError as error:
            wrong += [] if "2 processes cannot share" in str(error) else [str(error)]
    return wrong


def out_of_memory() -> list[str]:
    """Go on with less when the device is full, once, to the same result."""
    model, method, wrong, peaks = saved("llama"), npl.GPTQ(bits=4, group_size=16), [], []
    many = TOKENS.repeat(20, 1)
    expected, _ = run(model, method, "cpu", many)
    for options in ({}, {"device_memory": 1, "least": True}):
        memory.reset()
        run(model, method, "fake", many, **options)
        peaks.append(memory.peak)
    whole, least = peaks
    memory.limit((whole + least) // 2)
    try:
        found, said = run(model, method, "fake", many)
        wrong += [] if found == expected else ["other bytes than on the CPU"]
        wrong += [] if any("ran out" in line for line in said) else [f"not said: {said}"]
    finally:
        memory.limit(None)
    memory.limit(whole // 50)
    try:
        run(model, method, "fake")
        wrong.append("a device that is far too small is not noticed")
    except (NearplaneError, torch.OutOfMemoryError):
        pass
    finally:
        memory.limit(None)
    return wrong


def noticed(plant: Callable[[], AbstractContextManager]) -> bool:
    """Whether a planted error ends a run, or changes its bytes."""
    model, method = saved("llama"), npl.HPTQ(bpw=9.5)
    expected, _ = run(model, method, "cpu")
    try:
        with plant():
            return run(model, method, "fake")[0] != expected
    except (NearplaneError, RuntimeError, TypeError):
        return True


@contextmanager
def left_in_float64() -> Iterator[None]:
    """On a device without float64, let a factor that the CPU made be brought to it."""
    there = Float64Devices(torch.device("fake", 0), torch.device("cpu"))
    factor_file = sys.modules["nearplane.lattice.factor"]
    with NoFloat64(), patch.object(factor_file, "float64_devices", lambda device: there):
        yield


def planted() -> list[str]:
    """Notice what is wrong: a tensor on the CPU, missing copies, streams' order, products."""
    own = Placement.on_device, Placement.as_used, HessianSum.mean

    def left(self: HessianSum) -> Tensor:
        return own[2](self).cpu()

    def missing(self: Placement, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        # of down projections, whose rows are fewer than their columns
        narrow = tensor.ndim == 2 and tensor.shape[0] < tensor.shape[1]
        return tensor if narrow else own[1](self, tensor, dtype)

    wrong = [] if noticed(lambda: patch.object(HessianSum, "mean", left)) else ["left on the CPU"]
    if not noticed(lambda: patch.object(Placement, "as_used", missing)):
        wrong.append("a missing copy")
    side = torch.Stream(device=torch.device("fake", 0))

    def beside(self: Placement, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        with side:
            return own[1](self, tensor, dtype)

    def waited(self: Placement, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        copied = beside(self, tensor, dtype)
        torch.accelerator.current_stream().wait_stream(side)
        return copied

    if not noticed(lambda: patch.object(Placement, "as_used", beside)):
        wrong.append("copies on another stream that nobody waits for")
    if noticed(lambda: patch.object(Placement, "as_used", waited)):
        wrong.append("copies on another stream that are waited for fail")
    wrong += [] if noticed(left_in_float64) else ["a float64 tensor on a device without them"]
    narrow = device_file.rounded

    def tf32(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if weight.device.type != "cpu":
            # 10 bits of mantissa, as TF32 has
            inputs = (inputs * 4097 - (inputs * 4097 - inputs)).half().float()
        return narrow(weight, inputs)

    with patch.object(device_file, "rounded", tf32):
        try:
            chosen_device("fake")
            wrong.append("TF32")
        except NearplaneError as error:
            wrong += [] if "TF32" in str(error) else [str(error)]
        if chosen_device("auto") != torch.device("cpu"):
            wrong.append("auto takes a device that computes something else")
    if chosen_device("auto") != torch.device("fake", 0):
        wrong.append("auto does not take the device")
    return wrong


def transfers() -> list[str]:
    """Copy weights to the device a bounded number of times, and nothing in inner loops."""
    wrong, found, model = [], [], saved("llama")
    for tokens in (TOKENS[:2], TOKENS):
        memory.reset()
        run(model, npl.GPTQ(bits=4, group_size=16), "fake", tokens)
        found.append((memory.to_device, memory.to_host))
    # three times as many tokens are their own copies more, for a few passes
    more, tokens = 8 * (TOKENS.nbytes - TOKENS[:2].nbytes), ("to the device", "to the host")
    for before, after, where in zip(*found, tokens, strict=True):
        wrong += [f"{after - before} bytes more {where}"] if after - before > more else []
    bytes_ = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    for count, most, where in zip(found[1], (MOST_COPIES, MOST_COPIES), tokens, strict=True):
        wrong += [f"{count} bytes {where}, of {bytes_}"] if count > most * bytes_ else []
    return wrong


def bench() -> list[str]:
    """Run bench/gpu_quantize.py and plan on the device."""
    root = Path(__file__).parents[2]
    sys.path.insert(0, str(root / "bench"))
    with patch.object(sys, "argv", ["gpu_quantize.py", "--tiny", "--device", "fake"]):
        with sdpa_kernel(SDPBackend.MATH), redirect_stdout(StringIO()) as said:
            runpy.run_path(str(root / "bench" / "gpu_quantize.py"), run_name="__main__")
    expected = ["within", "forward", "eclq 128 x 64", "a run of 128 x 2048 tokens"]
    expected += ["model, ms", "bound by", "of its peak", "without peers"]
    wrong = [f"{each} is not said" for each in expected if each not in said.getvalue()]
    found = survey(saved("llama"), npl.HPTQ(bpw=9.5), arithmetic="float32")
    lines = "\n".join(estimate(found, 6, 24, device="here").lines())
    there = ("memory of fake:0", "measured just now, on fake:0", "to fake:0", "on the device")
    return wrong + [f"plan does not say {each!r}" for each in there if each not in lines]


if __name__ == "__main__":
    memory = install()
    check, *words = sys.argv[1:]
    print(json.dumps([line for line in globals()[check](*words) if line]))
