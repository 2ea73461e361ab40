"""A checkpoint that another package quantized -> a nearplane checkpoint, without rounding.

Integers and steps stay as they are; integers are entropy-coded, so that files become smaller at the
same weights. What is not quantized there is copied.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from nearplane import codes
from nearplane.codes.dense import signed_width
from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import (
    Checkpoint,
    locate_tensors,
    read_config,
    tensors_in,
)
from nearplane.export.checkpoint_writer import CheckpointWriter
from nearplane.export.companion_files import companion_files
from nearplane.export.output_directory import check_space
from nearplane.export.packed_layers import (
    BYTES,
    MARKS,
    PACKED,
    PARTS,
    READERS,
    PackedLayer,
)
from nearplane.model.auto_class import auto_class
from nearplane.model.experts import split_experts_
from nearplane.model.untrusted_files import check_blocks, forget_fetched_code
from nearplane.report.machine import machine
from nearplane.report.report_json import Kept, run_report
from nearplane.report.report_page import report_files
from nearplane.types import LayerReport, NearplaneError, naming_errors

SHOWN = 5  # names in a sentence
Says = Callable[[str], None]

CODERS = (codes.Rans(), codes.Huffman())
VERSIONS = ("gptq", "gptq_v2")
MIXED = "mixed-precision"  # several formats of compressed-tensors in one model
UNKNOWN = math.nan  # what only who quantized the layer knows
VOID = "imported: another package rounded it, and says nothing of its error"


@dataclass
class Foreign:
    """An open checkpoint of another package.

    - `method`: its `quant_method`. `settings`: its `quantization_config`.
    - `parts`: layer -> the last parts of the names of its tensors.
    """

    checkpoint: Checkpoint
    method: str
    settings: dict[str, Any]
    parts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def others(self) -> list[str]:
        """The tensors that belong to no packed layer."""
        own = {f"{layer}.{part}" for layer, parts in self.parts.items() for part in parts}
        return [name for name in self.checkpoint.file_of if name not in own]

    def layers(self) -> Iterator[tuple[str, PackedLayer]]:
        """Yield every packed layer, one at a time."""
        for name, parts in self.parts.items():
            found = {part: self.checkpoint.tensor(f"{name}.{part}") for part in parts}
            try:
                yield name, READERS[self.method](found, self.settings_of(name))
            except NearplaneError as error:
                raise NearplaneError(f"{self.checkpoint.directory}: {name}: {error}") from error

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of a layer there."""
        return sum(self.checkpoint.tensor(f"{name}.{p}").nbytes for p in self.parts[name])

    def settings_of(self, layer: str) -> dict[str, Any]:
        """Return the settings that hold for a layer."""
        if self.method != "compressed-tensors":
            return self.settings
        found: list[tuple[int, dict[str, Any]]] = []
        for group in self.settings["config_groups"].values():
            targets = group.get("targets")
            targets = targets if isinstance(targets, list) else [targets]
            best = max((rank(layer, target) for target in targets), default=0)
            found.append((best, group))
        best, group = max(found, key=lambda pair: pair[0], default=(0, {}))
        if not best:
            raise NearplaneError(f"{layer}: no entry of config_groups is of this layer")
        return check_weights(group, layer) | {"format": self.format_of(group, layer)}

    def format_of(self, group: dict[str, Any], layer: str) -> str:
        """Return the format of a `config_groups` entry: its own, or that of all."""
        found = group.get("format") or self.settings.get("format")
        if found not in (PACKED, *BYTES):
            raise NearplaneError(
                f"{layer}: the format {repr(found)} of compressed-tensors is not read; "
                f"{', '.join((PACKED, *BYTES))} are"
            )
        return found


def import_checkpoint(
    source: str | Path, out: str | Path, says: Says = lambda sentence: None
) -> Path:
    """Write a GPTQ, AWQ or compressed-tensors checkpoint as one of nearplane; returns its path.

    OUT appears whole or not at all. NearplaneError for what nearplane has no form for: groups of
    columns that are not neighbours, activations that are quantized, floating-point formats.
    """
    foreign = opened(Path(source))
    left, shapes = Names(foreign).check()
    if left:
        says(f"left behind, as the model does not take them: {', '.join(left[:SHOWN])}")
    before, started = sum(map(foreign.stored_bytes, foreign.parts)), time.perf_counter()
    check_space(out, before)
    with CheckpointWriter(out) as writer:
        reports, kept = [], Kept()
        for name, packed in foreign.layers():
            if list(packed.code.shape) != shapes[name]:
                raise NearplaneError(
                    f"{foreign.checkpoint.directory}: {name} has {list(packed.code.shape)} weights "
                    f"where the model has {shapes[name]}"
                )
            record, code_bytes = shortest(packed)
            writer.add(name + fmt.RECORD, record)
            reports.append(report_of(name, packed, record, code_bytes, foreign.method))
        for name in (name for name in foreign.others if name not in left):
            tensor = foreign.checkpoint.tensor(name)
            writer.add(name, tensor)
            kept.add(name, tensor.numel(), tensor.nbytes)
        recipe = {"method": "imported", "source": foreign.method, "settings": foreign.settings}
        config = {k: v for k, v in foreign.checkpoint.config.items() if k != "compression_config"}
        config["quantization_config"] = fmt.quantization_config(recipe, reports)
        files: Any = companion_files(foreign.checkpoint.directory)
        files.pop("quantize_config.json", None)
        facts = facts_of(source, left, started)
        report = fmt.rounded(run_report(reports, kept, recipe, facts))
        files |= report_files(report, writer.target.name)
        path = writer.finish(config, files)
    after = sum(report.stored_bytes for report in reports)
    says(
        f"{len(reports)} layers of {foreign.method}: {before / 1e6:.2f} MB there, "
        f"{after / 1e6:.2f} MB here ({100 * (after / before - 1):+.1f} %), the same integers"
    )
    return path


def facts_of(source: str | Path, left: list[str], started: float) -> dict[str, Any]:
    """Return the report's entries on the import as a whole.

    - `left`: tensors that were left behind. `started`: by `time.perf_counter`.
    """
    return {
        "model": str(source),
        "seconds": time.perf_counter() - started,
        "machine": machine(torch.get_num_threads(), "", 1),
        "left_out": [f"left behind, as the model does not take it: {name}" for name in left],
        "fallbacks": [],
    }


@dataclass(frozen=True)
class Names:
    """Compares the tensors of a checkpoint with those of the model that its configuration names."""

    foreign: Foreign

    def check(self) -> tuple[list[str], dict[str, list[int]]]:
        """Return the tensors that the model does not take, and the shapes of its packed layers.

        NearplaneError for tensors that are missing, and for names that transformers would change on
        loading.
        """
        directory = self.foreign.checkpoint.directory
        model = self.model()
        known = {name for name, _ in model.named_parameters()}
        every = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        others = set(self.foreign.others)
        for layer in self.foreign.parts:
            if f"{layer}.weight" not in every:
                raise NearplaneError(
                    f"{directory}: {type(model).__name__} has no layer {layer}; a checkpoint with "
                    "the names of today's transformers can be imported"
                )
            if f"{layer}.weight" in others:
                raise NearplaneError(f"{directory}: {layer} is there twice, packed and not")
        there = {f"{layer}.weight" for layer in self.foreign.parts} | others
        missing = sorted(known - there)
        if missing:
            raise NearplaneError(
                f"{directory} lacks {len(missing)} tensors of {type(model).__name__}: "
                f"{', '.join(missing[:SHOWN])}"
            )
        shapes = {layer: every[f"{layer}.weight"] for layer in self.foreign.parts}
        return sorted(others - set(every)), shapes

    def model(self) -> nn.Module:
        """Return the model without weights, experts one by one."""
        source = self.foreign.checkpoint.directory
        with naming_errors(f"building the model of {source}"):
            config = AutoConfig.from_pretrained(source)
            vars(config).pop("quantization_config", None)
            check_blocks(config, len(self.foreign.checkpoint.file_of))
            forget_fetched_code(config)
            with torch.device("meta"):
                model = auto_class(config).from_config(config)
        split_experts_(model)
        return model


def opened(directory: Path) -> Foreign:
    """Return the checkpoint in a directory after checking what can be without reading weights."""
    config = read_config(directory)
    settings = config.get("quantization_config") or config.get("compression_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method == fmt.METHOD:
        raise NearplaneError(f"{directory} is a nearplane checkpoint already")
    if not isinstance(settings, dict) or not isinstance(method, str) or method not in READERS:
        known = ", ".join(sorted(READERS))
        found = f"quant_method {repr(method)}" if method else "no quantization_config"
        raise NearplaneError(f"{directory} has {found}; what can be imported is {known}")
    method, settings = check_settings(method, settings, directory)
    checkpoint = Checkpoint(directory, config, {}, tensors_of(directory))
    checkpoint.check_files()
    foreign = Foreign(checkpoint, method, settings)
    parted = [name.rpartition(".") for name in checkpoint.file_of]
    marked = [layer for layer, _, part in parted if part in MARKS[method]]
    if not marked:
        raise NearplaneError(f"{directory} holds no layer that {method} packed")
    for layer in dict.fromkeys(marked):
        own = [part for part in PARTS if f"{layer}.{part}" in checkpoint.file_of]
        in_bytes = foreign.settings_of(layer).get("format") in BYTES
        whole = in_bytes and f"{layer}.weight" in checkpoint.file_of
        foreign.parts[layer] = [*own, *(["weight"] if whole else [])]
    strays = [n for n in foreign.others if n.rpartition(".")[2] in PARTS]
    if strays:
        raise NearplaneError(f"{directory}: {strays[0]} belongs to no layer that is packed")
    return foreign


def tensors_of(directory: Path) -> dict[str, str]:
    """Return tensor -> file; also of a single file with a name of its own."""
    files = [path.name for path in directory.glob("*.safetensors")]
    named = (directory / fmt.INDEX).exists() or (directory / fmt.SINGLE).exists()
    if named or len(files) != 1:
        return locate_tensors(directory)
    found = dict.fromkeys(tensors_in(directory / files[0]), files[0])
    if not all(map(fmt.is_name, found)):
        raise NearplaneError(f"{directory / files[0]} holds a tensor whose name cannot be printed")
    return found


def check_settings(
    method: str, settings: dict[str, Any], directory: Path
) -> tuple[str, dict[str, Any]]:
    """Return whose packing it is, and its settings; NearplaneError for one that is not read."""
    if method == "auto-round":
        packing = str(settings.get("packing_format"))
        if not packing.endswith("gptq"):
            raise NearplaneError(f"{directory}: AutoRound's packing {packing!r} is not read")
    if method == "gptq" and (settings.get("checkpoint_format") or "gptq") not in VERSIONS:
        raise NearplaneError(
            f"{directory}: the format {repr(settings['checkpoint_format'])} of GPTQ is not read; "
            "gptq and gptq_v2 are"
        )
    if method == "compressed-tensors":
        groups = settings.get("config_groups")
        whole = isinstance(groups, dict) and all(isinstance(g, dict) for g in groups.values())
        if settings.get("format") not in (PACKED, MIXED, *BYTES) or not whole:
            raise NearplaneError(
                f"{directory}: the format {repr(settings.get('format'))} of compressed-tensors is "
                f"not read; {', '.join((PACKED, MIXED, *BYTES))} are"
            )
    for name in ("kv_cache_scheme", "transform_config", "sparsity_config", "adapter"):
        if settings.get(name) and not is_dense(settings[name]):
            raise NearplaneError(f"{directory}: a model with {name} cannot be imported")
    return method, settings


def check_weights(group: dict[str, Any], layer: str) -> dict[str, Any]:
    """Return how the weights of a `config_groups` entry are quantized; refuses activations."""
    weights = group.get("weights")
    if group.get("input_activations") or group.get("output_activations"):
        raise NearplaneError(f"{layer}: quantized activations cannot be imported")
    if not isinstance(weights, dict) or weights.get("type", "int") != "int":
        raise NearplaneError(f"{layer}: weights that are no integers cannot be imported")
    return weights


def is_dense(setting: Any) -> bool:
    """Whether a setting of sparse weights says that there are none."""
    return isinstance(setting, dict) and setting.get("format") == "dense"


def rank(layer: str, target: Any) -> int:
    """Return how closely a target of `config_groups` names a layer: 3 by its name, 2, 1, or 0."""
    if not isinstance(target, str):
        return 0
    if target.startswith("re:"):
        try:
            return 2 if re.match(target[3:], layer) else 0
        except re.error:
            return 0
    return 3 if target == layer else int(target == "Linear")


def shortest(packed: PackedLayer) -> tuple[Tensor, int]:
    """Return the smallest record of a layer and the bytes of its codes; it decodes to the same."""
    step, size = packed.step, packed.group_size
    if step.shape[1] == 1:
        size = packed.code.shape[1]
    low, high = int(packed.code.min()), int(packed.code.max())
    coders = (*CODERS, codes.Dense(signed_width(low, high)))
    record, code_bytes = min(
        (codes.pack(packed.code, step, size, None, coder) for coder in coders),
        key=lambda made: len(made[0]),
    )
    held = codes.unpack(record)
    if not (torch.equal(held.code, packed.code) and torch.equal(held.step, step)):
        raise NearplaneError("the record does not decode to what it was made of")
    return record, code_bytes


def report_of(
    name: str, packed: PackedLayer, record: Tensor, code_bytes: int, method: str
) -> LayerReport:
    """Return what is known of an imported layer: its bytes, and nothing of its error."""
    rows, columns = packed.code.shape
    weights = rows * columns
    return LayerReport(
        name=name,
        method=method,
        rows=rows,
        columns=columns,
        stored_bytes=len(record),
        bpw=8 * len(record) / weights,
        code_bpw=8 * code_bytes / weights,
        loss=UNKNOWN,
        damped_loss=UNKNOWN,
        energy=UNKNOWN,
        bound=None,
        void=VOID,
        weight_error=UNKNOWN,
        tokens=0,
        dropped_tokens=0,
        dead_columns=0,
        seconds=0.0,
    )
