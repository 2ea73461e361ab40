"""A program that torchrun starts several of: what they do together is what one does alone."""

import atexit
import dataclasses
import os
import pickle
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import nearplane as npl
from nearplane import lattice
from nearplane.cli.failure import exit_when_terminated
from nearplane.lattice import k_best, nearest_plane, rate_aware_plane
from nearplane.lattice.cross_target import Moments, choose_ridges, ridge_targets
from nearplane.lattice.rate_aware import Prices
from nearplane.methods import ECLQ, HPTQ, METHODS, SSQR, Method, RateError, Target
from nearplane.methods.certificate import Losses, measure
from nearplane.model.blocks import Layer
from nearplane.pipeline import Watcher
from nearplane.rows import by_rows, in_parts
from nearplane.walk.ranks import Ranks

TOKENS = torch.randint(2, 300, (8, 32), generator=torch.Generator().manual_seed(0))


def matrices(rows: int, n: int) -> tuple[Tensor, lattice.Basis]:
    """Return a target and a basis, the same in every process."""
    draws = torch.Generator().manual_seed(rows)
    x = torch.randn(2 * n, n, generator=draws)
    basis = lattice.basis(x.T @ x / len(x), "activation", 0.01)
    return torch.randn(rows, n, generator=draws), basis


def works(rows: int, n: int) -> list[Callable[[], Tensor]]:
    """Return what is shared out by rows, with every form of steps."""
    target, basis = matrices(rows, n)
    factor = basis.factor.float()
    draws = torch.Generator().manual_seed(1)
    own = torch.rand(rows, n, generator=draws) + 0.5
    length = torch.rand(6, 9, generator=draws)
    prices = Prices(length, torch.arange(rows) % 3, torch.arange(n) % 4)
    return [
        partial(nearest_plane, target, factor, torch.full((1, 1), 0.3)),
        partial(nearest_plane, target, factor, own[:1]),
        partial(nearest_plane, target, factor, own[:, :1], -2, 1),
        partial(nearest_plane, target, factor, own, low=-4, high=3),
        partial(rate_aware_plane, target, factor, own[:1], prices),
        partial(k_best, target, factor, own[:1], prices, 3),
        partial(drifted, target, basis),
        *(partial(of_losses, target, basis, part) for part in dataclasses.fields(Losses)),
    ]


def drifted(target: Tensor, basis: lattice.Basis) -> Tensor:
    """Return what a weight should become, by the ridge that is best on other tokens."""
    fitted, held = (
        Moments(basis.hessian * share, basis.hessian * 1.1 * share, 0.01 * target)
        for share in (1.0, 0.9)
    )
    choices = choose_ridges([target], fitted, held)
    assert choices[0].strength > 0
    return ridge_targets([target], fitted, choices)[0]


def of_losses(target: Tensor, basis: lattice.Basis, part: dataclasses.Field) -> Tensor:
    """Return one part of what is measured of rounded rows, some of which are in their boxes."""
    sides = torch.rand(len(target), 1, generator=torch.Generator().manual_seed(2)).double()
    losses = measure(target, lambda rows: target[rows].round(), basis, lambda rows: 9 * sides[rows])
    return getattr(losses, part.name)


def of_first(work: Callable[[], Any]) -> Any:
    """Return the result of the first process, which does it alone; the others wait."""
    ranks = Ranks.joined()
    content = ranks.bytes_of_first(pickle.dumps(work()) if ranks.first else None)
    assert content is not None
    return pickle.loads(content)


def is_as_alone(work: Callable[[], Any]) -> bool:
    """Whether work that is shared gives every process, bit for bit, what the first does alone."""
    alone = of_first(work)
    with Ranks.joined().sharing_rows():
        return same(alone, work())


def rows_are_rounded_as_alone() -> None:
    """Bit for bit, whatever the number of rows."""
    for rows, n in ((1, 40), (511, 40), (513, 96), (1600, 64), (2048, 33), (1100, 300)):
        for number, work in enumerate(works(rows, n)):
            assert is_as_alone(work), (rows, n, number)


def parts_come_as_they_are() -> None:
    """Tensors of every type and shape, of any cut, and work inside of work."""
    ranks = Ranks.joined()
    whole = [
        torch.arange(70)[:, None] * torch.tensor([1, 2**20, -(2**40)]),
        torch.arange(70, dtype=torch.int32) - 300,
        torch.randn(70, 2, 3, generator=torch.Generator().manual_seed(3)),
        torch.arange(70) % 3 == 0,
        torch.full((70, 0), 1.5, dtype=torch.float16),
        torch.linspace(-1, 1, 70, dtype=torch.float64).nan_to_num() / 0,
    ]

    def inside(rows: slice) -> tuple[Tensor]:
        seen = in_parts(lambda some: (whole[2][rows][some],), rows.stop - rows.start, 1)
        assert len(seen) == 1 and len(seen[0][0]) == rows.stop - rows.start
        return seen[0]

    with ranks.sharing_rows():
        for grain in (1, 7, 30, 69, 70, 71):
            made = by_rows(lambda r: tuple(t[r] for t in whole), 70, grain)
            for one, other in zip(whole, made, strict=True):
                assert torch.equal(one, other) and one.dtype == other.dtype
            assert torch.equal(by_rows(inside, 70, grain)[0], whole[2])
            counts = in_parts(lambda r: (torch.tensor([r.stop - r.start]),), 70, grain)
            assert sum(int(count) for (count,) in counts) == 70
            assert len(counts) == min(ranks.size, max(70 // grain, 1))
        assert in_parts(lambda r: (torch.zeros(r.stop),), 0)[0][0].shape == (0,)
    assert len(in_parts(lambda r: (torch.zeros(1),), 70, 1)) == 1


def small(name: str) -> Method:
    """Return a registered method at what fits small matrices."""
    made = METHODS[name]
    known = {field.name for field in dataclasses.fields(made)}
    usual = {"bpw": 6.0, "bits": 4, "group_size": 32}
    return made(**{name: value for name, value in usual.items() if name in known})


def every_method_as_alone() -> None:
    """Record, codes, losses and bounds of each, alone, side by side and towards a target."""
    # the second are several pieces of what is counted and bands of what is coded
    for rows, n in ((513, 64), (2100, 256)):
        weight, basis = matrices(rows, n)
        weight[rows // 2] *= 40  # some integers escape

        more = ECLQ(bpw=4.0, paths=3), SSQR(per="matrix")
        for method in (*map(small, METHODS), *more):
            own = method.basis(basis.hessian)
            together = [weight, weight[:600] * 2] if isinstance(method, HPTQ) else [weight]
            assert is_as_alone(partial(method.together, together, own)), (method, rows)
        aim = Target(weight + 0.1 * weight.roll(1, 1))
        assert is_as_alone(partial(ECLQ(bpw=6.0).quantize_towards, weight, basis, aim))


def same(one: object, other: object) -> bool:
    """Whether two results are the same in every field and bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # bounds that are void are NaN
        bits = (part.contiguous().numpy().tobytes() for part in (one, other))
        return one.dtype == other.dtype and one.shape == other.shape and len(set(bits)) == 1
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
        )
    return one == other


def errors_are_everybodys() -> None:
    """What one process cannot do none can, and they go on together."""
    ranks = Ranks.joined()
    weight, basis = matrices(1600, 40)
    weight[1599, 39] = torch.nan
    with ranks.sharing_rows():
        try:
            HPTQ()(weight, basis)
        except npl.NearplaneError as error:
            assert "NaN" in str(error)
        else:
            raise AssertionError("NaN was taken")
        try:
            HPTQ(bpw=1.1)(weight[:8, :40] * 0 + 1, basis)
        except RateError:
            pass
        try:
            in_parts(fails_at_the_end, 9, 1)
        except ZeroDivisionError:
            assert ranks.rank == ranks.size - 1
        except npl.NearplaneError as error:
            last = ranks.size - 1
            assert str(error) == f"process {last} of {ranks.size} failed at its part of a layer"
        else:
            raise AssertionError("one process failed and the others did not notice")
        (rows,) = by_rows(lambda some: (torch.arange(some.start, some.stop),), 9, 1)
    assert rows.tolist() == list(range(9)) and ranks.total(1) == ranks.size


def fails_at_the_end(rows: slice) -> tuple[Tensor]:
    return (torch.tensor([1 // (9 - rows.stop)]),)


def quantize_on_the_same_hessians(model: str, block: str, out: str) -> None:
    """Everybody is given all tokens, so that no sum has another order than alone.

    The default method is given a whole model, the others one of a single block.
    """
    whole = patch.object(Ranks, "share", lambda self, tokens: tokens)
    alone = patch.object(Ranks, "sum_", lambda self, *tensors: None)
    for name in METHODS:
        with whole, alone:
            given = model if name == "eclq" else block
            npl.quantize(given, f"{out}-{name}", small(name), TOKENS)


def quantize(model: str, out: str, name: str, dies_after: str) -> None:
    """Quantize; the last process is killed after so many layers, if it is asked for."""
    ranks, count = Ranks.joined(), 0
    put = Layer.assign

    def assign(layer: Layer, value: Tensor) -> None:
        nonlocal count
        count += 1
        if count == int(dies_after):
            os.kill(os.getpid(), signal.SIGKILL)
        put(layer, value)

    if int(dies_after) and ranks.rank == ranks.size - 1:
        patch.object(Layer, "assign", assign).start()
    watcher = Watcher(lambda said: print(said, file=sys.stderr))
    npl.quantize(model, out, METHODS[name](bpw=6.0), TOKENS, resume=True, watcher=watcher)


def too_little_time_is_said_by_all(model: str, out: str) -> None:
    """The first process measures, and the others say what it says."""
    try:
        npl.quantize(model, out, HPTQ(bpw=6.0), ["a text"] * 99, seconds=1e-3)
    except npl.NearplaneError as error:
        assert "0 s are too little" in str(error), error
    else:
        raise AssertionError("a millisecond was enough")
    assert Ranks.joined().total(1) == Ranks.joined().size  # nobody is left waiting


def nothing_outlives_the_group() -> None:
    """A thread of the group that meets the end of Python aborts the process, now and then."""
    tasks = Path("/proc/self/task")
    names = {(task / "comm").read_text().strip() for task in tasks.iterdir()}
    if names & {"pt_gloo_runloop", "gloo_tcp_loop"}:
        print(f"after the group was left its threads run: {names}", file=sys.stderr, flush=True)
        os._exit(1)


def run(functions: dict[str, Any], words: list[str]) -> None:
    """Call functions one after the other, or the one whose name ends in a colon with the rest."""
    atexit.register(nothing_outlives_the_group)  # the last that is done: before the group is joined
    if words[0].endswith(":"):
        functions[words[0][:-1]](*words[1:])
        return
    for name in words:
        functions[name]()


if __name__ == "__main__":
    torch.set_num_threads(1)
    exit_when_terminated()
    run(globals(), sys.argv[1:])
