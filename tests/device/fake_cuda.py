"""A GPU without numbers: torch's FakeTensorMode, which counts what a run holds, copies and asks.

Tensors have a shape, a type and a device, and take no memory. Wherever code asks for a number of a
tensor on the GPU it would wait for the GPU: the mode gives an answer that lets the code go on, and
counts it by call site. So it does with copies between devices, and with the bytes of all tensors
that are alive on each device. What kernels and libraries take inside of an operator is not seen.
"""

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
SPREAD = 7  # integers of a histogram reach so far from zero
INSIDE = ("op.py", "rows.py")  # files whose frames are not named as call sites
aten = torch.ops.aten

Answers = dict[str, Any]  # by call site: what a number is, where the usual answer would mislead


class Held:
    """The bytes of the tensors that are alive on one device.

    - `peak`: the most since the phase began, and `parts` what they were, by call site.
    - `peaks`: of every phase.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.alive: dict[int, tuple[int, str]] = {}
        self.parts: Counter[str] = Counter()
        self.peaks: dict[str, tuple[int, Counter[str]]] = {}

    def add(self, key: int, bytes_: int, site: str) -> None:
        self.alive[key] = bytes_, site
        self.now += bytes_
        if self.now > self.peak:
            self.peak = self.now

    def remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)[0]

    def by_site(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for bytes_, site in self.alive.values():
            found[site] += bytes_
        return found


class FakeCuda(FakeTensorMode):
    """Fake tensors, and what they would have cost.

    - `held`: by type of device. `copied`: call site and direction -> how often, and how many bytes.
    - `asked`: call site -> how often a number of the GPU was asked for.
    - `moved`: copies that no line of the program asked for: operands on two devices.
    """

    def __init__(self, answers: Answers):
        super().__init__(allow_non_fake_inputs=True)
        self.answers = answers
        self.held: dict[str, Held] = defaultdict(Held)
        self.copied: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self.asked: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.watched: Counter[str] = Counter()
        self.snapshots = 0.0
        self.refs: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        special = SPECIAL.get(func)
        if special is not None:
            self.look_at(func, args, kwargs)
            result = special(self, func, args, kwargs)
            if result is NotImplemented:
                result = super().__torch_dispatch__(func, types, args, kwargs)
        else:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        self.note(result)
        return result

    def look_at(self, func: Any, args: Any, kwargs: Any) -> None:
        """Count a copy between devices."""
        if func in COPIES:
            where = COPIES[func](args, kwargs)
            if where is not None:
                source, to, tensor = where
                entry = self.copied[call_site(), f"{source} to {to}"]
                entry[0] += 1
                entry[1] += tensor.numel() * tensor.element_size()

    def note(self, result: Any) -> None:
        """Count the memory of new tensors."""
        for each in tree_leaves(result):
            if not isinstance(each, FakeTensor):
                continue
            storage = each.untyped_storage()
            key = storage._cdata
            if key in self.refs or not storage.nbytes():
                continue
            kind = each.fake_device.type
            held = self.held[kind]

            def gone(_: Any, key: int = key, held: Held = held) -> None:
                held.remove(key)
                del self.refs[key]

            self.refs[key] = weakref.ref(storage, gone)
            held.add(key, storage.nbytes(), call_site())
            if held.now == held.peak and held.now > 1.01 * self.snapshots and kind == "cuda":
                held.parts, self.snapshots = held.by_site(), held.now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Keep the most that is held on every device in a `with` block."""
        for held in self.held.values():
            held.peak = held.now
        self.snapshots = 0.0
        try:
            yield
        finally:
            for kind, held in self.held.items():
                key = f"{kind} {name}"
                before = held.peaks.get(key, (0, Counter()))
                held.peaks[key] = max(before, (held.peak, held.parts), key=lambda pair: pair[0])
                held.peak = held.now
            self.snapshots = 0.0

    def answer(self, tensor: Tensor, usual: Any) -> Any:
        """Return what the code takes for a number, and count that it asked."""
        site = call_site()
        if tensor.device.type == "cuda":
            self.asked[site] += 1
        return self.answers.get(site, usual)


def call_site() -> str:
    """Return the file and function of nearplane, or of transformers, that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        at = path.rfind("/nearplane/")
        own = at >= 0 and not path.endswith(INSIDE)
        if own and not name.startswith("<"):
            return f"{path[at + 11 :]}:{name}"
        if "/transformers/" in path:
            return f"{path.rsplit('/', 1)[1]}:{name}"
        frame = frame.f_back
    return "elsewhere"


def number(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    (tensor,) = args
    if getattr(tensor, "constant", None) is not None:
        return tensor.constant.item()
    if tensor.dtype == torch.bool:
        return bool(mode.answer(tensor, True))
    return mode.answer(tensor, 0 if not tensor.is_floating_point() else 1.0)


def equal(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether tensors are equal: masks and positions are, hidden states are not."""
    first, _ = args
    answer = mode.answer(first, True)
    return answer(first) if callable(answer) else answer


def distinct(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """Return the distinct integers and their numbers, of a bell curve."""
    mode.answer(args[0], None)
    values = np.arange(-SPREAD, SPREAD + 1)
    share = np.exp(-(values**2) / 8.0)
    counts = np.rint(share / share.sum() * args[0].numel()).astype(np.int64)
    found = args[0].new_empty(len(values))
    inverse = args[0].new_empty(0, dtype=torch.int64)
    times = args[0].new_empty(len(values), dtype=torch.int64)
    found.numbers, times.numbers = values.astype(np.int32), counts
    return found, inverse, times


def picked(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """Return what a mask picks: everything; indices on another device are a copy."""
    tensor, indices = args[0], args[1]
    for index in indices:
        if isinstance(index, Tensor) and index.device != tensor.device:
            mode.moved[call_site()] += 1
    if any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices):
        mode.answer(tensor, None)
        mask = next(i for i in indices if isinstance(i, Tensor))
        return tensor.clone() if mask.ndim == 1 else tensor.reshape(-1).clone()
    return NotImplemented


def bins(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """Return the counts of bincount, all alike; the GPU's waits for its largest number."""
    tensor = args[0]
    mode.answer(tensor, None)
    size = max(args[2] if len(args) > 2 else kwargs.get("minlength", 0), 1)
    counts = tensor.new_empty(size, dtype=torch.int64)
    each, left = divmod(tensor.numel(), size)
    counts.numbers = np.full(size, each) + (np.arange(size) < left)
    return counts


def solved(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """Hold the copy of the factor that the solver makes on a GPU."""
    copy = args[1].clone()
    result = FakeTensorMode.__torch_dispatch__(mode, func, (), args, kwargs)
    mode.note(result)
    del copy
    return result


def named(mode: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """Let a copy or a view of known numbers know them."""
    numbers = getattr(args[0], "numbers", None)
    if numbers is None:
        return NotImplemented
    result = FakeTensorMode.__torch_dispatch__(mode, func, (), args, kwargs)
    result.numbers = numbers
    return result


def moving(args: Any, kwargs: Any) -> tuple[str, str, Tensor] | None:
    to = kwargs.get("device")
    to = None if to is None else torch.device(to).type
    source = args[0].device.type
    return None if to is None or to == source else (source, to, args[0])


def filling(args: Any, kwargs: Any) -> tuple[str, str, Tensor] | None:
    to, source = args[0].device.type, args[1].device.type
    return None if to == source else (source, to, args[1])


COPIES: dict[Any, Callable[[Any, Any], tuple[str, str, Tensor] | None]] = {
    aten._to_copy.default: moving,
    aten.copy_.default: filling,
}
SPECIAL: dict[Any, Callable[[FakeCuda, Any, Any, Any], Any]] = {
    aten._local_scalar_dense.default: number,
    aten.equal.default: equal,
    aten._unique2.default: distinct,
    aten.index.Tensor: picked,
    aten.index_put_.default: lambda *args: NotImplemented,
    aten.bincount.default: bins,
    aten.cholesky_solve.default: solved,
    aten._to_copy.default: named,
    aten.detach.default: named,
    aten.slice.Tensor: named,
    aten.copy_.default: lambda *args: NotImplemented,
}


class Data:
    """The attribute `data` of a tensor, which may come from another device."""

    def __get__(self, tensor: Any, kind: Any = None) -> Any:
        return self if tensor is None else torch._C.TensorBase.data.__get__(tensor)

    def __set__(self, tensor: Any, value: Tensor) -> None:
        torch._C.TensorBase.data.__set__(tensor, value)
        tensor.fake_device = value.device


def address(tensor: Tensor) -> int:
    """Return a number that no other tensor's memory has."""
    return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()


def in_numpy(tensor: Tensor, *_: Any, **__: Any) -> np.ndarray:
    """Return an array of this shape that takes no memory."""
    assert tensor.device.type == "cpu", f"numbers on {tensor.device}"
    numbers = getattr(tensor, "numbers", None)
    if numbers is not None:
        return numbers
    kind = torch.empty(0, dtype=tensor.dtype, device="meta")
    return np.broadcast_to(np.ones((), str(kind.dtype).removeprefix("torch.")), tensor.shape)


def in_list(mode: FakeCuda, tensor: Any) -> Any:
    """Return a tensor's numbers in a list: one copy, and one wait."""
    numbers = getattr(tensor, "numbers", None)
    usual = mode.answer(tensor, 0.0)
    if tensor.constant is not None:
        return tensor.constant.tolist()
    return (np.full(tensor.shape, usual) if numbers is None else numbers).tolist()


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    """Return what attention returns, by the kernel that torch takes on a GPU.

    That is flash attention for 16 bits without a mask; else products with all scores in memory.
    """
    plain = query.dtype.itemsize == 2 and options.get("attn_mask") is None and not args
    if query.device.type != "cuda" or not plain:
        return ATTENTION(query, key, value, *args, **options)
    causal, scale = options.get("is_causal", False), options.get("scale")
    flash = aten._scaled_dot_product_flash_attention.default
    return flash(query, key, value, 0.0, causal, scale=scale)[0]


ATTENTION = torch.nn.functional.scaled_dot_product_attention


@contextmanager
def fake_cuda(answers: Answers) -> Iterator[FakeCuda]:
    """Make every new tensor one without numbers inside a `with` block; "cuda:0" is there.

    tests/device/cuda_guard.py was loaded before torch.
    """
    mode = FakeCuda(answers)
    with ExitStack() as stack:
        for name, value in (
            ("data", Data()),
            ("data_ptr", address),
            ("numpy", in_numpy),
            ("tolist", lambda tensor: in_list(mode, tensor)),
        ):
            stack.enter_context(patch.object(FakeTensor, name, value, create=True))
        stack.enter_context(patch("torch.cuda.get_device_name", lambda *_: "a GPU"))
        functional = "torch.nn.functional.scaled_dot_product_attention"
        stack.enter_context(patch(functional, attention))
        # transformers makes masks of its own where numbers are fake
        stack.enter_context(patch("transformers.masking_utils.is_tracing", lambda *_: False))
        stack.enter_context(mode)
        yield mode


def without_numbers_(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model from the meta device into the machine's memory, without numbers."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                new = made.get(id(tensor))
                if new is None:
                    own = dtype if tensor.is_floating_point() else tensor.dtype
                    empty = torch.empty(tensor.shape, dtype=own, device="cpu")
                    new = made[id(tensor)] = nn.Parameter(empty, requires_grad=False)
                module._parameters[name] = new
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
