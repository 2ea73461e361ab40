"""`quantize`: from a model to a checkpoint, with every finished layer handed to the writer."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nearplane.evaluate.loaded_check import LoadedCheckError, check_loaded
from nearplane.export.checkpoint_format import quantization_config, rounded, special_floats
from nearplane.export.checkpoint_writer import CheckpointWriter, Unwritten
from nearplane.export.companion_files import (
    companion_files,
    files_left_behind,
    stored_companions,
)
from nearplane.export.ledger import Ledger, code_digest, digest
from nearplane.export.output_directory import check_space
from nearplane.export.uncompressed import uncompressed_tensors
from nearplane.methods import Method
from nearplane.methods.allocation import allocation_sentence
from nearplane.model.block_loading import InMemory
from nearplane.model.compute_dtype import AUTO, TYPES, check_arithmetic, name_of
from nearplane.model.open_model import OpenModel, open_model
from nearplane.model.output_head import configuration
from nearplane.model.process_memory import forget_file_pages
from nearplane.model.selection import Rules
from nearplane.plan.calibration_size import CalibrationSize, calibrated
from nearplane.plan.offload import offload_for
from nearplane.plan.survey import Survey, survey
from nearplane.report.machine import machine
from nearplane.report.report_json import Kept, run_report
from nearplane.report.report_page import report_files
from nearplane.rows import in_threads
from nearplane.types import LayerReport, NearplaneError, Progress, no_progress
from nearplane.version import __version__
from nearplane.walk.background import Background
from nearplane.walk.calibration import CalibrationRequest, Text, TokenAccount
from nearplane.walk.device import Accelerator, chosen_device, with_less_if_full
from nearplane.walk.hidden_states import CPU
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.precision import Precision
from nearplane.walk.ranks import Ranks
from nearplane.walk.walk import Walk
from nearplane.walk.write_behind import WriteBehind

SHOWN = 20  # names of tensors in a sentence
MANY_BYTES = 1 << 24  # after writing a larger tensor, the pages of its mapped file are freed


@dataclass(frozen=True)
class Watcher:
    """Functions that a run calls to report what it does.

    - `says`: gets a sentence. `done`: gets a finished layer's report, and the number of layers.
    - `progress`: gets the name of a step before the first layer, and the share that is done.
    """

    says: Callable[[str], None] = lambda sentence: None
    done: Callable[[LayerReport, int], None] = lambda report, layers: None
    progress: Progress = no_progress


@with_less_if_full
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
    languages: bool = True,
    rules: Rules | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    memory: int | None = None,
    arithmetic: str = AUTO,
    device: str = "cpu",
    device_memory: int | None = None,
    least: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Quantize every linear layer of a causal language model and store it in `out`.

    Blocks are quantized in order, each on the inputs that the quantized blocks before it give.
    `out` appears when all is done, or not at all. Returns the report, stored as report.json.
    Processes of torchrun share the work. NearplaneError for input that cannot be used.

    - `model`: a directory, a hub name or a .gguf file; or its survey by `plan.survey`.
    - `calibration`: a file, directory or data set's name, several with weights, strings or tokens.
    - `sequences`, `length`: at most so many, of so many tokens; None: see `walk.calibration`.
    - `seconds`: instead of `sequences`: about how long the run may take.
    - `languages`: mix in a sample of other languages and code, see `walk.language_sample`.
    - `rules`: which layers to skip, and how many may fall back to round-to-nearest.
    - `resume`: use the layers that an interrupted run to `out` has finished; errors keep them.
    - `memory`, `device_memory`: bytes a process may use, here and of the device; None is all free.
    - `arithmetic`: the type of products, by name; "auto": see `nearplane.model.compute_dtype`.
    - `device`: where blocks run, see `walk.device`; `least`: of its memory, do not refuse.
    """
    ranks, started, watcher = begun(watcher)
    precision, limit = computing_on(device, device_memory, least, arithmetic, watcher)
    wanted = CalibrationSize(calibration, sequences, length, seconds, device, device_memory)
    ledger = Ledger(out, ranks.first, ranks.bytes_of_first)
    with writer_to(out, ranks) as writer, keeping(ledger, watcher, resume), computing(precision):
        earlier = earlier_recipe(ledger) if resume else {}
        survey = surveyed(model, method, rules, trust_remote_code)
        survey = in_one_precision(survey, earlier, arithmetic, ranks, precision)
        size = wanted.size(survey, ranks, memory, earlier.get("calibration"), watcher.says)
        offload = offload_for(survey, size, ranks, memory, limit)
        check_output(out, survey, watcher)
        request = CalibrationRequest(*size, chat_template, languages=languages)
        tokenizer, tokens, account = calibrated(survey, calibration, request, watcher.says)
        source = open_model(survey.empty, by_blocks=offload.by_blocks, tokenizer=tokenizer)
        walk = walk_of(survey, source, tokens, offload.limits(out), limit, ledger, ranks).prepare()
        recipe = method.recipe() | recipe_of_run(account, survey)
        settings = dependencies(source, recipe, walk) | precision.recorded
        say_first(facts_of(survey, source, walk), ledger.begin(settings, resume), watcher)
        recipe |= allocated(walk, ledger, watcher)
        reports, trusted = written(walk, writer, watcher), survey.empty.trusted
        return Finish(source, walk, reports, recipe, trusted).store(writer, started)


def begun(watcher: Watcher | None) -> tuple[Ranks, float, Watcher]:
    """Return the processes, the time, and the watcher in the process that has one."""
    ranks = Ranks.joined()
    return ranks, time.perf_counter(), watcher if watcher and ranks.first else Watcher()


def computing_on(
    device: str, allowed: int | None, least: bool, arithmetic: str, watcher: Watcher
) -> tuple[Precision, Accelerator | None]:
    """Return how to compute on the device of a name, and the device, which is None for the CPU.

    Raises NearplaneError for a device that cannot be used, or a type of products that is none.
    """
    check_arithmetic(arithmetic)
    chosen = chosen_device(device)
    return Precision(chosen, watcher.says), Accelerator.of(chosen, allowed, not least)


def writer_to(out: str | Path, ranks: Ranks) -> AbstractContextManager[Any]:
    """Return what takes the finished records: in the first process, the checkpoint's writer."""
    return CheckpointWriter(out) if ranks.first else nullcontext(Unwritten())


def walk_of(
    survey: Survey,
    source: OpenModel,
    tokens: torch.Tensor,
    limits: ActivationLimits,
    accelerator: Accelerator | None,
    ledger: Ledger,
    ranks: Ranks,
) -> Walk:
    """Return the walk over a model, whose blocks run on an accelerator or on the CPU."""
    device = CPU if accelerator is None else accelerator.device
    placement = Placement(source.model, source.loader, survey.compute, limits, device)
    parts = {"store": ledger, "ranks": ranks, "placement": placement, "sampled": ranks.first}
    return Walk(source.model, survey.method, tokens, selection=survey.selection, **parts)


@contextmanager
def keeping(ledger: Ledger, watcher: Watcher, resume: bool) -> Iterator[None]:
    """Remove the ledger after a finished run; after an interrupted one, say what it holds."""
    ledger.refuse_without_resume(resume)
    try:
        yield
    except LoadedCheckError:
        ledger.remove()
        raise
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
    """Quantize every layer and hand its record to the writer; return the layers' reports."""
    reports = []
    with Background(threaded=walk.prepared.placement.limits.ahead) as thread:
        walk.store = None if walk.store is None else WriteBehind(walk.store, thread)
        for layer, quantized, report in walk:
            thread.start(writer.add, f"{layer.name}.record", quantized.record)
            reports.append(report)
            watcher.done(report, len(walk.layers))
            # its integers would take memory until the next layer is there
            del quantized
    return reports


def earlier_recipe(ledger: Ledger) -> dict[str, Any]:
    """Return the recipe of the run that is resumed, and its devices; {} if there is none."""
    run = ledger.recall("run")
    recipe = run.get("recipe") if isinstance(run, dict) else None
    if not isinstance(recipe, dict) or recipe.get("arithmetic") not in TYPES:
        return {}
    return recipe | {name: run.get(name) for name in ("device", "float64")}


def recipe_of_run(account: TokenAccount, survey: Survey) -> dict[str, Any]:
    """Return the recipe's entries beside the method: the calibration and the type of products."""
    return {"calibration": account.for_json(), "arithmetic": name_of(survey.compute)}


def facts_of(survey: Survey, source: OpenModel, walk: Walk) -> list[str]:
    """Return sentences on the types, and on all that is left as it is or left behind."""
    return [arithmetic_sentence(survey), *unused(source), *walk.left_out]


def unused(source: OpenModel) -> list[str]:
    """Return a sentence on the tensors of the files that no part of the model takes."""
    if not source.unused:
        return []
    some = ", ".join(source.unused[:SHOWN])
    more = f" and {len(source.unused) - SHOWN} more" if len(source.unused) > SHOWN else ""
    return [f"left behind, as {type(source.model).__name__} does not take them: {some}{more}"]


def arithmetic_sentence(survey: Survey) -> str:
    """Say which type products run in, and which one the model is stored in."""
    return f"stored in {name_of(survey.dtype)}, computed in {name_of(survey.compute)}"


def surveyed(
    model: str | Path | Survey, method: Method, rules: Rules | None, trust_remote_code: bool
) -> Survey:
    """Return `model` if it is a survey, else survey it.

    Raises NearplaneError if the survey was made for another method or under other rules.
    """
    if not isinstance(model, Survey):
        return survey(model, method, rules, trust_remote_code)
    if model.method != method or rules not in (None, model.selection.rules):
        raise NearplaneError("the model was surveyed for another method, or under other rules")
    return model


def in_one_precision(
    survey: Survey,
    earlier: dict[str, Any],
    arithmetic: str,
    ranks: Ranks,
    precision: Precision,
) -> Survey:
    """Return the survey with one type of products for all processes, and float64 in one place.

    - `earlier`: the recipe of the run that is resumed, or {}.
    - `arithmetic`: a type's name; "auto" is the type of the resumed run, or else the one that is
      fast in the first process.
    """
    name = earlier.get("arithmetic", AUTO) if arithmetic == AUTO else arithmetic
    precision.choose(survey.widest, ranks, earlier)
    own = survey.compute if precision.device == CPU else survey.dtype
    dtype = own if name == AUTO else TYPES[name]
    first = ranks.bytes_of_first(name_of(dtype).encode()) or b""
    return replace(survey, compute=TYPES.get(first.decode(), dtype))


def say_first(facts: list[str], differing: list[str], watcher: Watcher) -> None:
    """Say facts of a run, and how it differs from the run that it resumes."""
    for sentence in facts:
        watcher.says(sentence)
    for sentence in differing:
        watcher.says(f"warning: {sentence}: the result may differ in its last digits")


def allocated(walk: Walk, ledger: Ledger, watcher: Watcher) -> dict[str, Any]:
    """Return the recipe's entry of every layer's rate; {} if the method gives all the same rate.

    They are those of the run that is resumed, or measured now; output Hessians come first.
    """
    if walk.weigh_outputs(watcher.progress) and walk.by_themselves:
        watcher.says(f"warning: rows are rounded by themselves: {walk.by_themselves}")
    if not walk.method.allocates:
        return {}
    known = ledger.recall("allocation")
    if known is None:
        walk.allocate(watcher.progress)
        ledger.remember("allocation", [walk.bits, walk.predicted_kl])
        ledger.remember("probed", walk.probed)
    else:
        walk.bits, walk.predicted_kl = known
        walk.probed = ledger.recall("probed") or {}
    watcher.says(allocation_sentence(walk.bits, walk.predicted_kl))
    return {"allocation": walk.bits, "predicted_kl": walk.predicted_kl}


def dependencies(source: OpenModel, recipe: dict[str, Any], walk: Walk) -> dict[str, Any]:
    """Return all that quantized layers depend on except the weights, for `Ledger.begin`."""
    config: Any = source.model.config
    model = json.loads(config.to_json_string(use_diff=False))
    return {
        "nearplane": {"version": __version__, "code": code_digest()},
        "torch": torch.__version__,
        # the same model may lie in another directory now
        "model": {name: value for name, value in model.items() if name != "_name_or_path"},
        "recipe": recipe,
        "tokens": digest(walk.tokens),
        "rules": asdict(walk.rules),
        "threads": torch.get_num_threads(),
        "processes": walk.ranks.size,
        "device": walk.prepared.placement.device.type,
    }


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Inside a `with` block, products are exact and threads share the host's work."""
    with precision.kept(), in_threads(torch.get_num_threads()):
        yield


@dataclass(frozen=True)
class Finish:
    """A finished walk, whose records are written, and what the rest of the checkpoint needs."""

    source: OpenModel
    walk: Walk
    reports: Sequence[LayerReport]
    recipe: dict[str, Any] = field(default_factory=dict)
    trusted: bool = False

    def store(self, writer: CheckpointWriter | Unwritten, started: float) -> dict[str, Any]:
        """Write the uncompressed tensors and other files, complete `out` and return the report.

        - `started`: when the run began, by `time.perf_counter`.
        """
        layers = {report.name for report in self.reports}
        kept = Kept()
        for name, tensor in uncompressed_tensors(self.source.model, layers, self.source.loader):
            writer.add(name, tensor)
            kept.add(name, tensor.numel(), tensor.nbytes)
            if tensor.nbytes > MANY_BYTES:
                forget_file_pages()
        report = run_report(self.reports, kept, self.recipe, self.facts(started))
        with tempfile.TemporaryDirectory() as path:
            files = stored_companions(self.source, Path(path))
            files |= report_files(rounded(report), writer.target.name)
            writer.finish(self.config(), files, self.check)
        return report

    def facts(self, started: float) -> dict[str, Any]:
        """Return the report's entries on the run as a whole."""
        device, processes = self.walk.prepared.placement.device_name, self.walk.ranks.size
        return {
            "model": self.source.name,
            "seconds": time.perf_counter() - started,
            "machine": machine(torch.get_num_threads(), device, processes),
            "left_out": self.walk.left_out,
            "fallbacks": self.walk.fallbacks,
            "rows_by_themselves": self.walk.by_themselves,
            "experts": self.walk.arrivals,
            "sensitivity": self.walk.probed,
        }

    def check(self, directory: Path) -> None:
        """Load the checkpoint that is about to appear, and compare it with the walk."""
        sample = self.walk.prepared.sample
        if sample is not None:
            by_blocks = not isinstance(self.source.loader, InMemory)
            dtype = TYPES[self.recipe["arithmetic"]]
            with tempfile.TemporaryDirectory() as elsewhere:
                # under its own name it is refused, as what an interrupted run leaves
                finished = Path(elsewhere) / "checkpoint"
                finished.symlink_to(directory, target_is_directory=True)
                check_loaded(finished, sample, dtype, self.trusted, by_blocks)

    def config(self) -> dict[str, Any]:
        """Return the model's configuration with the quantization in it."""
        config = special_floats(configuration(self.source.model))
        config["architectures"] = [type(self.source.model).__name__]
        config.pop("_name_or_path", None)
        config["quantization_config"] = quantization_config(self.recipe, self.reports)
        return config


def check_output(out: str | Path, survey: Survey, watcher: Watcher) -> None:
    """Refuse a full disk, and files that cannot be copied; say which files are left behind."""
    check_space(out, survey.model_bytes)
    if survey.empty.is_gguf:
        return
    companions = companion_files(survey.name)
    for name in files_left_behind(survey.name, companions):
        watcher.says(
            f"{name} is left behind: it is neither read nor a tokenizer's, processor's or licence's"
        )
