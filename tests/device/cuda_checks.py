"""The checks of tests/device/cuda_program.py."""

from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from unittest.mock import patch

from torch import Tensor

import nearplane as npl
from nearplane import rows
from nearplane.kernels.gpu.nearest_plane import TritonSweep
from nearplane.methods import Method
from nearplane.methods.scale_search import CodedMatrix
from nearplane.plan import device_stages, footprint
from nearplane.plan.offload import choose_with_device
from nearplane.walk import walk
from nearplane.walk.device import Accelerator
from nearplane.walk.hessian import HessianSum
from nearplane.walk.rounding import Rounder
from tests.device.fake_cuda import CUDA, FakeCuda
from tests.device.fake_models import LLAMA_8B, LLAMA_405B, QWEN3_30B_A3B, Run

WITHIN = 1.2  # what is planned over what is held, and the other way round
# of a run with all its phases: for every layer, for every tensor of the model, for every batch at
# every stage; none for a column, a row or a leaf
COPIES_A_LAYER, COPIES_A_TENSOR = 80, 6
COPIES_A_BATCH = 4  # its tokens, once a pass, and its answers at the head
WAITS_A_LAYER, WAITS_A_BATCH = 60, 12
HPTQ, ECLQ = npl.HPTQ(bpw=3.1), npl.ECLQ(bpw=3.1)
PLAIN = npl.ECLQ(bpw=3.1, two_sided=False, allocate=False)
NARROW = LLAMA_8B | {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 8192}
NARROW |= {"num_attention_heads": 8, "num_key_value_heads": 2}
WIDE = NARROW | {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
MIXTURE = QWEN3_30B_A3B | {"hidden_size": 512, "num_attention_heads": 8, "vocab_size": 8192}
MIXTURE |= {"num_key_value_heads": 2, "head_dim": 64, "moe_intermediate_size": 256}
MIXTURE |= {"num_experts": 8, "num_experts_per_tok": 2}
SMALL = {"blocks": 1, "sequences": 4, "length": 256}
SHORT_BATCH, FEW_NUMBERS = 512, 1 << 18  # of small runs, for which pieces would be everything


def counted(run: Run) -> tuple[FakeCuda, list[str]]:
    """Return what a run costs, and what is wrong with it."""
    needs = run.needs()
    paused = needs.batches if run.limits.paused is None else run.limits.paused
    planned = needs.on_device(run.limits.on_host, paused)
    layers, tensors = len(needs.survey.layers), len(list(needs.survey.model.parameters()))
    batches = needs.batches * len(needs.survey.stages) * needs.streams
    # what `nearplane plan --device` says, and what a run decides by
    there = Accelerator(CUDA, float("inf"))
    chosen = choose_with_device(needs.survey, needs.run, float("inf"), there, False)
    assert chosen.device == needs.on_device(False, needs.batches)
    mode = run.counted(needs.survey)
    held = max(peak for peak, _ in mode.held["cuda"].peaks.values())
    name = f"{run.numbers['model_type']} {run.numbers['hidden_size']} {run.method.name}"
    sizes = f"planned {planned.total / 1e9:.3f} GB, held {held / 1e9:.3f} GB"
    print(f"{name}: {sizes} ({planned.sentence()})")
    for phase, (peak, parts) in mode.held["cuda"].peaks.items():
        most = ", ".join(f"{site} {bytes_ / 1e9:.3f}" for site, bytes_ in parts.most_common(6))
        print(f"  {phase}: {peak / 1e9:.3f} GB: {most}")
    for kind, found in (("copied", mode.copied), ("asked", mode.asked)):
        print(f"  {kind}: {sorted(found.items(), key=str)}")
    copies, asked = sum(times for times, _ in mode.copied.values()), sum(mode.asked.values())
    most = (
        COPIES_A_LAYER * layers + COPIES_A_TENSOR * tensors + COPIES_A_BATCH * needs.batches,
        (WAITS_A_LAYER * layers + WAITS_A_BATCH * batches),
    )
    wrong = [f"{name}: {mode.moved} moved without a word"] if mode.moved else []
    wrong += [f"{name}: {copies} copies"] if copies > most[0] else []
    wrong += [f"{name}: waits {asked} times"] if asked > most[1] else []
    if not held / WITHIN <= planned.total <= held * WITHIN:
        wrong.append(f"{name}: planned {planned}, held {held / 1e9:.3f} GB")
    if mode.held["cuda"].now:
        wrong.append(f"{name}: {mode.held['cuda'].by_site()} are held at the end")
    return mode, wrong


def small(numbers: dict, method: Method, **size: int) -> tuple[FakeCuda, list[str]]:
    """Return what a run of a small model costs, and what is wrong with it."""
    with ExitStack() as stack:
        for owner, name, value in (
            (walk, "BATCH_TOKENS", SHORT_BATCH),
            (footprint, "BATCH_TOKENS", SHORT_BATCH),
            (rows, "AT_ONCE", FEW_NUMBERS),
            (device_stages, "AT_ONCE", FEW_NUMBERS),
        ):
            stack.enter_context(patch.object(owner, name, value))
        return counted(Run(numbers, method, **SMALL | size))


def more(narrow: FakeCuda, wide: FakeCuda) -> list[str]:
    """Return what is copied or asked for more often by a model of twice as many rows and columns.

    Searches for a rate may take another sample first where matrices are larger.
    """
    wrong = []
    for kind, before, after in (
        (
            "copied",
            Counter({k: v[0] for k, v in narrow.copied.items()}),
            Counter({k: v[0] for k, v in wide.copied.items()}),
        ),
        ("asked for", narrow.asked, wide.asked),
    ):
        grown = {k: (before[k], n) for k, n in after.items() if n > 1.5 * before[k] + 4}
        wrong += [f"{kind} more often in a wider model: {grown}"] if grown else []
    return wrong


def narrow_and_wide() -> list[str]:
    """Hold what is planned, and copy and wait as often for twice as many columns and rows."""
    (narrow, wrong), (wide, wrong_too) = small(NARROW, HPTQ), small(WIDE, HPTQ)
    return wrong + wrong_too + more(narrow, wide)


def targets() -> list[str]:
    """Hold what is planned with two streams of hidden states."""
    return small(NARROW, PLAIN)[1]


def gradients() -> list[str]:
    """Hold what is planned with output Hessians and probing, and of a mixture of experts."""
    return small(NARROW, ECLQ)[1] + small(MIXTURE, ECLQ)[1] + small(MIXTURE, HPTQ)[1]


def waiting() -> list[str]:
    """Hold what is planned where most of it is of batches that wait inside a block."""
    few_words = NARROW | {"vocab_size": 1024}
    return small(few_words, HPTQ, sequences=64)[1] + small(few_words, PLAIN, sequences=64)[1]


def noticed(name: str, plant: AbstractContextManager) -> list[str]:
    """Return that a planted error is not noticed, if it is not."""
    clean, _ = small(NARROW, HPTQ)
    try:
        with plant:
            planted, wrong = small(WIDE, HPTQ)
        return [] if wrong or more(clean, planted) else [f"{name} is not noticed"]
    except (RuntimeError, AssertionError):
        return []


def planted() -> list[str]:
    """Notice a tensor left on the CPU, a copy in a leaf, and a buffer that is kept."""
    mean, leaf, kept = HessianSum.mean, TritonSweep.leaf, []
    original, permuted = Rounder.original, CodedMatrix.permuted

    def left(self: HessianSum) -> Tensor:
        return mean(self).cpu()

    def copying(self: TritonSweep, first: int, end: int) -> None:
        self.error[first:end].cpu()
        leaf(self, first, end)

    def keeping(function, *args):
        kept.append(function(*args))
        return kept[-1]

    buffers = ExitStack()
    wrong = noticed("a tensor left on the CPU", patch.object(HessianSum, "mean", left))
    wrong += noticed("a copy in a leaf", patch.object(TritonSweep, "leaf", copying))
    for owner, name, own in ((Rounder, "original", original), (CodedMatrix, "permuted", permuted)):
        keep = partial(keeping, own)
        value = lambda *args, keep=keep: keep(*args)  # noqa: E731
        buffers.enter_context(patch.object(owner, name, value))
    with buffers:
        _, said = small(NARROW, HPTQ)
    return wrong + ([] if any("held" in line for line in said) else ["buffers that are kept"])


def real(numbers: dict, method: Method, **size) -> list[str]:
    """Hold what is planned for a model of real size, with one of its blocks."""
    return counted(Run(numbers, method, **{"blocks": 1} | size))[1]


CHECKS = {
    "narrow_and_wide": narrow_and_wide,
    "targets": targets,
    "gradients": gradients,
    "waiting": waiting,
    "planted": planted,
    "llama_8b_hptq": partial(real, LLAMA_8B, HPTQ),
    "llama_8b_eclq": partial(real, LLAMA_8B, ECLQ),
    "qwen3_30b_a3b_hptq": partial(real, QWEN3_30B_A3B, HPTQ, sequences=8, experts=2),
    "qwen3_30b_a3b_eclq": partial(real, QWEN3_30B_A3B, ECLQ, sequences=8, experts=2),
    "llama_405b_hptq": partial(real, LLAMA_405B, HPTQ),
    "llama_405b_eclq": partial(real, LLAMA_405B, ECLQ),
}
