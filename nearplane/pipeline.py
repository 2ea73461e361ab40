"""From a model to a checkpoint: walks the model and hands every finished layer to the writer."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nearplane.export.checkpoint_format import quantization_config, rounded
from nearplane.export.checkpoint_writer import CheckpointWriter
from nearplane.export.companion_files import companion_files
from nearplane.export.ledger import Ledger, digest
from nearplane.export.output_directory import check_space
from nearplane.export.uncompressed import uncompressed_tensors
from nearplane.methods import Method
from nearplane.model.compute_dtype import AUTO, TYPES, check_arithmetic, name_of
from nearplane.model.open_model import OpenModel, open_model, open_tokenizer
from nearplane.model.process_memory import available_bytes, forget_file_pages
from nearplane.model.selection import Rules
from nearplane.plan.calibration_size import CalibrationSize
from nearplane.plan.offload import Offload, choose_offload
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey, survey
from nearplane.types import LayerReport, NearplaneError, Progress, no_progress
from nearplane.version import __version__
from nearplane.walk.calibration import CalibrationRequest, Text, TokenAccount, calibrate
from nearplane.walk.placement import Placement
from nearplane.walk.ranks import Ranks
from nearplane.walk.report import count_bits, run_report
from nearplane.walk.walk import Walk

MANY_BYTES = 1 << 24  # of a mapped tensor, after which its pages are let go


@dataclass(frozen=True)
class Watcher:
    """Functions that a run calls as it goes on.

    - `says` gets sentences; `done` every layer as it is done, and how many there are.
    - `progress` gets the name of what is done before, and the share of it that has been.
    """

    says: Callable[[str], None] = lambda sentence: None
    done: Callable[[LayerReport, int], None] = lambda report, layers: None
    progress: Progress = no_progress


def quantize(
    model: str | Path | Survey,
    out: str | Path,
    method: Method,
    calibration: Text,
    *,
    sequences: int | None = None,
    length: int | None = None,
    seconds: float | None = None,
    chat_template: bool = False,
    rules: Rules | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    memory: int | None = None,
    arithmetic: str = AUTO,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Quantize every linear layer of a causal language model and store it in `out`.

    Blocks are done one after the other, each on what the quantized ones before it give; `out`
    appears when all is done, or not at all. Returns the report that is stored as report.json.

    - `model`: a directory, a hub name or a .gguf file; or its survey by `plan.survey`.
    - `calibration`: a .txt, .jsonl or .parquet file, strings, token tensors or a data set's name.
    - `sequences`, `length`: at most so many, of so many tokens; see `walk.calibration` if None.
    - `seconds`: in place of `sequences`, about how long the run may take; picks as many as fit.
    - `rules`: what to skip and what to put up with.
    - `resume`: go on with what an earlier run to `out` finished before it was ended, if anything.
    - `memory`: bytes that a process keeps within, at the price of time; what there is if None.
    - `arithmetic`: the type of products, by name; "auto": see `nearplane.model.compute_dtype`.

    Processes of torchrun share calibration and rows. Raises NearplaneError for what a better input
    would mend; finished layers are then kept on disk for a run that resumes.
    """
    ranks = Ranks.joined()
    watcher = watcher if watcher and ranks.first else Watcher()
    check_arithmetic(arithmetic)
    asked, started = CalibrationSize(calibration, sequences, length, seconds), time.perf_counter()
    ledger = Ledger(out, ranks.first, ranks.bytes_of_first)
    writing = CheckpointWriter(out) if ranks.first else nullcontext(Unwritten())
    with writing as writer, keeping(ledger, watcher, resume):
        earlier = earlier_recipe(ledger) if resume else {}
        found = surveyed(model, method, rules, trust_remote_code)
        found = in_one_dtype(found, earlier, arithmetic, ranks)
        size = asked.size(found, ranks, memory, earlier.get("calibration"), watcher.says)
        offload = offload_for(found, size, ranks, memory)
        check_space(out, found.model_bytes)
        tokenizer = open_tokenizer(found.empty.where)
        request = CalibrationRequest(*size, chat_template)
        tokens, account = calibrated(found, tokenizer, calibration, request, watcher)
        source = open_model(found.empty, by_blocks=offload.by_blocks, tokenizer=tokenizer)
        place = Placement(source.model, source.loader, found.compute, offload.limits(out))
        parts = {"selection": found.selection, "store": ledger, "ranks": ranks, "placement": place}
        walk = Walk(source.model, method, tokens, found.selection.rules, **parts).prepare()
        recipe = method.recipe() | recipe_of_run(account, found)
        differing = ledger.begin(dependencies(source, recipe, walk), resume)
        say_first([arithmetic_sentence(found), *walk.left_out], differing, watcher)
        recipe |= allocated(walk, ledger, watcher)
        finish = Finish(source, walk, written(walk, writer, watcher), recipe)
        return finish.store(writer, time.perf_counter() - started)


@contextmanager
def keeping(ledger: Ledger, watcher: Watcher, resume: bool) -> Iterator[None]:
    """Say what is kept when a run ends before its time; keep nothing of one that is finished."""
    ledger.refuse_without_resume(resume)
    try:
        yield
    except BaseException:
        if ledger.finished_layers:
            watcher.says(
                f"{ledger.finished_layers} finished layers are kept in {ledger.directory}: "
                "go on with --resume"
            )
        else:
            ledger.remove_if_empty()
        raise
    ledger.remove()


def written(walk: Walk, writer: Any, watcher: Watcher) -> list[LayerReport]:
    """Hand every layer to the writer as it is done; returns what is to be said of them."""
    reports = []
    for layer, quantized, report in walk:
        writer.add(f"{layer.name}.record", quantized.record)
        reports.append(report)
        watcher.done(report, len(walk.layers))
    return reports


def earlier_recipe(ledger: Ledger) -> dict[str, Any]:
    """Return the recipe of the run that is gone on with; nothing if there is none."""
    run = ledger.recall("run")
    found = run.get("recipe") if isinstance(run, dict) else None
    return found if isinstance(found, dict) and found.get("arithmetic") in TYPES else {}


def recipe_of_run(account: TokenAccount, found: Survey) -> dict[str, Any]:
    """Return what a recipe says beside the method: the calibration, and the type computed in."""
    return {"calibration": account.for_json(), "arithmetic": name_of(found.compute)}


def arithmetic_sentence(found: Survey) -> str:
    """Say which type products run in, and which one the model is stored in."""
    return f"stored in {name_of(found.dtype)}, computed in {name_of(found.compute)}"


def surveyed(
    model: str | Path | Survey, method: Method, rules: Rules | None, trust_remote_code: bool
) -> Survey:
    """Return the survey that was made already, or make it."""
    if not isinstance(model, Survey):
        return survey(model, method, rules, trust_remote_code)
    if model.method != method or rules not in (None, model.selection.rules):
        raise NearplaneError("the model was surveyed for another method, or under other rules")
    return model


def in_one_dtype(found: Survey, earlier: dict[str, Any], arithmetic: str, ranks: Ranks) -> Survey:
    """Return the survey with the type that all processes, and the earlier run, compute in.

    - `arithmetic`: "auto" takes what the earlier run did, or what the first process found.
    """
    name = earlier.get("arithmetic", AUTO) if arithmetic == AUTO else arithmetic
    own = found.compute if name == AUTO else TYPES[name]
    first = ranks.bytes_of_first(name_of(own).encode()) or b""
    return replace(found, compute=TYPES.get(first.decode(), own))


def say_first(facts: list[str], differing: list[str], watcher: Watcher) -> None:
    """Say what there is to know of a run, and how it differs from the one that it goes on with."""
    for sentence in facts:
        watcher.says(sentence)
    for sentence in differing:
        watcher.says(f"warning: {sentence}: the result may differ in its last digits")


def allocated(walk: Walk, ledger: Ledger, watcher: Watcher) -> dict[str, Any]:
    """Return what the recipe says of the layers' own rates; nothing of a method that gives none.

    They are found out now, or were by the run that is gone on with.
    """
    if not walk.method.allocates:
        return {}
    known = ledger.recall("allocation")
    if known is None:
        ledger.remember("allocation", walk.allocate(watcher.progress))
    else:
        walk.bits = known
    watcher.says(allocation_sentence(walk.bits))
    return {"allocation": walk.bits}


def dependencies(source: OpenModel, recipe: dict[str, Any], walk: Walk) -> dict[str, Any]:
    """Return all that the quantized layers depend on, but for the weights themselves."""
    config: Any = source.model.config
    model = json.loads(config.to_json_string(use_diff=False))
    return {
        "nearplane": {"version": __version__, "code": code_digest()},
        "torch": torch.__version__,
        # the same model may have moved
        "model": {name: value for name, value in model.items() if name != "_name_or_path"},
        "recipe": recipe,
        "tokens": digest(walk.tokens),
        "rules": asdict(walk.rules),
        "threads": torch.get_num_threads(),
        "processes": walk.ranks.size,
    }


@cache
def code_digest(package: Path = Path(__file__).parent) -> str:
    """Return the SHA-256 of the files that decide what a layer becomes.

    The rooms from the opened model to the rounded integers; of the kernels what rounds. Neither the
    planner nor exporters nor the command line are among them.
    """
    whole = hashlib.sha256()
    rooms = ("codes", "lattice", "methods", "model", "walk")
    files = [path for room in rooms for path in sorted((package / room).rglob("*.py"))]
    kernels = package / "kernels"
    files += [*sorted(kernels.rglob("nearest_plane.py")), *sorted(kernels.rglob("*.so"))]
    for path in [*files, *(package / f"{name}.py" for name in ("op", "rows", "types"))]:
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


class Unwritten:
    """Stands for the checkpoint in processes that leave it to the first one."""

    def add(self, name: str, tensor: torch.Tensor) -> None:
        pass

    def finish(self, config: dict[str, Any], files: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Finish:
    """A finished walk, on its way to the disk."""

    source: OpenModel
    walk: Walk
    reports: Sequence[LayerReport]
    recipe: dict[str, Any] = field(default_factory=dict)

    def store(self, writer: CheckpointWriter | Unwritten, seconds: float) -> dict[str, Any]:
        """Write what is not a record, let the checkpoint appear and return the report."""
        layers = {report.name for report in self.reports}
        other_bytes = other_numbers = 0
        for name, tensor in uncompressed_tensors(self.source.model, layers, self.source.loader):
            writer.add(name, tensor)
            other_bytes, other_numbers = other_bytes + tensor.nbytes, other_numbers + tensor.numel()
            if tensor.nbytes > MANY_BYTES:
                forget_file_pages()
        bits = count_bits(self.reports, other_bytes, other_numbers)
        said = {
            "model": self.source.name,
            "seconds": seconds,
            "left_out": self.walk.left_out,
            "fallbacks": self.walk.fallbacks,
            "experts": self.walk.arrivals,
        }
        report = run_report(self.reports, bits, self.recipe, said)
        with tempfile.TemporaryDirectory() as made:
            files = {**stored_companions(self.source, Path(made)), "report.json": rounded(report)}
            writer.finish(self.config(), files)
        return report

    def config(self) -> dict[str, Any]:
        """Return the model's configuration with the quantization in it."""
        model: Any = self.source.model
        config = model.config.to_dict()
        config.pop("_name_or_path", None)
        config["architectures"] = [type(model).__name__]
        config["quantization_config"] = quantization_config(self.recipe, self.reports)
        return config


def offload_for(found: Survey, sizes: tuple[int, int], ranks: Ranks, memory: int | None) -> Offload:
    """Return how a process keeps within its memory; NearplaneError if it cannot keep a promise."""
    sequences, length = sizes
    run = RunSize(max(sequences, ranks.size), length, ranks.size)
    if memory is None:
        return choose_offload(found, run, available_bytes() / ranks.size)
    return choose_offload(found, run, memory, promised=True)


def calibrated(
    found: Survey, tokenizer: Any, text: Text, wanted: CalibrationRequest, watcher: Watcher
) -> tuple[torch.Tensor, TokenAccount]:
    """Return a text as tokens and their account; say what became of it and what is odd about it."""
    tokens, account = calibrate(text, tokenizer, wanted)
    watcher.says(f"calibration: {account.sentence()}")
    if account.sequences < wanted.sequences:
        watcher.says(
            f"warning: the text fills {account.sequences} of the {wanted.sequences} sequences "
            "to be used"
        )
    config: Any = found.model.config
    bos = getattr(config, "bos_token_id", None)
    if bos is not None and account.opened_by is None and account.source != "token tensors":
        watcher.says(
            f"note: the model's configuration names a beginning-of-sequence token ({bos}), but its "
            "tokenizer opens no text with it; neither does the calibration"
        )
    return tokens, account


def allocation_sentence(bits: dict[str, float]) -> str:
    """Return the allocation in one line: the range of every kind of layer."""
    kinds: dict[str, list[float]] = {}
    for name, rate in bits.items():
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(rate)
    ranges = (f"{kind} {min(r):.2f} .. {max(r):.2f}" for kind, r in kinds.items())
    return f"bits per weight by equal slope: {', '.join(ranges) or 'no layer could be probed'}"


def stored_companions(source: OpenModel, made: Path) -> dict[str, Path]:
    """Return the tokenizer's and the other files that go with the model.

    - `made`: an empty directory for files that have to be made, as of a GGUF file's tokenizer.
    """
    if not source.name.endswith(".gguf"):
        return companion_files(source.name)
    if source.tokenizer is None:
        raise NearplaneError(f"the tokenizer of {source.name} cannot be read")
    source.tokenizer.save_pretrained(made)
    return {path.name: path for path in made.iterdir()}
