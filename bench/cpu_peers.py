"""The rows of bench/cpu.py that other libraries run, each in a process and environment of its own.

llama.cpp evaluates whole blocks: its time includes norms, attention over a few tokens and an
output layer of 256 words beside the linear layers, whose weights alone are counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cpu_rows import Row, Throughput, copies
from peers.environment import FOLDER, InstallError, install, installed, peer_python
from peers.pipe import Worker, meet_rate
from records import Model

HERE = Path(__file__).resolve().parent / "peers"
VOCABULARY, CONTEXT = 256, 32


@dataclass(frozen=True)
class Peer:
    """A library: its environment's name, and the kinds of weights that rows are made of.

    - `isa`: the instruction set that it was built for; None is this processor's own.
    """

    name: str
    kernel: str
    kinds: dict[str, float]  # bits of a weight
    isa: str | None = None


LLAMACPP = Peer("llamacpp", "llama.cpp", {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_0": 4.5, "Q4_K": 4.5})
LLAMACPP_AVX2 = replace(LLAMACPP, name="llamacpp-avx2", isa="avx2")
PEERS = [
    LLAMACPP,
    LLAMACPP_AVX2,
    Peer("onnxruntime", "onnxruntime", {"matmulnbits-int4": 5.0}),
]


def start(peer: Peer, build: bool) -> Worker | None:
    """Return a process of a peer; print a line why there is none."""
    try:
        if build:
            install(peer.name)
    except InstallError as error:
        print(f"{peer.kernel}: left out: {error}")
        return None
    if not installed(peer.name):
        built = f" for {peer.isa}" if peer.isa else ""
        print(f"{peer.kernel}{built}: left out: it has no environment here; --peers builds it")
        return None
    library = peer.name.partition("-")[0]
    script, log = HERE / f"{library}_worker.py", FOLDER / f"{peer.name}_worker.log"
    return Worker(peer_python(peer.name), script, log)


def rows(
    peer: Peer, worker: Worker, kinds: Iterable[str], models: Iterable[Model], batches: list[int]
) -> list[Row]:
    """Return the rows of a peer, whose models stay loaded in `worker`."""
    found = []
    for model in models:
        for kind in kinds:
            count = copies(model, peer.kinds[kind])
            name = f"{model.name}-{kind.lower()}"
            if peer.kernel == LLAMACPP.kernel:
                path = gguf_path(f"{name}-{count}")
                bits = make_gguf(worker, path, kind, model, count, VOCABULARY)
                worker("load", name=name, path=path, context=CONTEXT)
            else:
                bits = worker("load", name=name, layers=model.layers, copies=count)
            for batch in batches:
                run = runner(worker, name, batch, model.weights * count)
                kernel = f"{peer.kernel}-{kind.lower()}"
                found.append(Row(kernel, run, bits, None, bits, model, batch, peer.isa))
    return found


def gguf_path(name: str) -> str:
    return str(FOLDER / "gguf" / f"{name}.gguf")


def make_gguf(
    worker: Worker,
    path: str,
    kind: str,
    model: Model,
    blocks: int,
    vocabulary: int,
    ends: str = "",
) -> float:
    """Write llama.cpp's model of a shape unless it is there; return the bits of its blocks."""
    shape = {key: getattr(model, key) for key in ("hidden", "feed_forward", "heads", "kv_heads")}
    sizes = {"shape": shape, "blocks": blocks, "vocabulary": vocabulary}
    return worker("make", path=path, kind=kind, ends=ends, **sizes)


def runner(worker: Worker, name: str, batch: int, weights: int) -> Callable[[int], Throughput]:
    def run(threads: int) -> Throughput:
        meet_rate()
        seconds = worker("forward", name=name, batch=batch, threads=threads)
        return {None: weights / seconds / 1e9}

    return run
