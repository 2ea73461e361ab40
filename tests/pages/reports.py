"""Reports of runs that never were, as report.json has them."""

from typing import Any

from nearplane.report.report_json import Kept, run_report
from nearplane.types import LayerReport

KINDS = {"self_attn.q_proj": (64, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
HOSTILE = "</script><script>alert(1)</script><!--\"'&"


def layer(name: str, number: int, shape: tuple[int, int], **changed: Any) -> LayerReport:
    """Return an entry whose numbers differ from every other's."""
    rows, columns = shape
    loss = 0.001 * (1 + number * 37 % 101)
    fields: dict[str, Any] = {
        "name": name,
        "method": "eclq",
        "rows": rows,
        "columns": columns,
        "stored_bytes": rows * columns * (2 + number % 3) // 8,
        "bpw": float(2 + number % 3),
        "code_bpw": 2.0,
        "loss": loss,
        "damped_loss": 1.25 * loss,
        "energy": 10.0,
        "bound": 6 * loss,
        "void": "",
        "weight_error": loss,
        "tokens": 4096,
        "dropped_tokens": 0,
        "dead_columns": 0,
        "seconds": 0.5,
        "facts": {"aside": 0.0, "largest_code": 5.0 + number, "am_gm_bits": 0.1},
        "log2_pivots": [-3 + number % 5 / 7 * i for i in range(17)],
    }
    return LayerReport(**fields | changed)


def layers(blocks: int, experts: int = 0) -> list[LayerReport]:
    """Return an embedding and the layers of some blocks, with or without experts."""
    names = [("model.embed_tokens", (320, 64))]
    for block in range(blocks):
        for kind, shape in KINDS.items():
            parts = kind.split(".")
            if experts and parts[0] == "mlp":
                each = [f"mlp.experts.{expert}.{parts[1]}" for expert in range(experts)]
            else:
                each = [kind]
            names += [(f"model.layers.{block}.{name}", shape) for name in each]
    return [layer(name, number, shape) for number, (name, shape) in enumerate(names)]


def report(entries: list[LayerReport], **changed: Any) -> dict[str, Any]:
    """Return the report of a run that allocated bits by sensitivity."""
    kept = Kept()
    kept.add("model.layers.0.input_layernorm.weight", 64, 128)
    units = dict.fromkeys(unit(entry.name) for entry in entries)
    probed = {name: [0.001 * (i + 1), 0.0005 * (i + 1)] for i, name in enumerate(units)}
    recipe = {
        "method": "eclq",
        "bpw": 3.0,
        "predicted_kl": sum(expected for _, expected in probed.values()),
        "calibration": {"source": "notes.txt", "sequences": 8, "length": 512},
    }
    total = recipe["predicted_kl"]
    averages = [[3 + step / 4, total * 4 ** (-step / 4)] for step in range(-6, 9)]
    facts = {
        "model": "org/model",
        "seconds": 12.5,
        "machine": {"processor": "Some CPU", "cores": 2, "versions": {"torch": "2.13"}},
        "left_out": [],
        "fallbacks": [],
        "experts": {},
        "sensitivity": {"bpw": 3.0, "units": probed, "averages": averages},
    }
    return run_report(entries, kept, recipe, facts) | changed


def unit(name: str) -> str:
    """Return what a layer was probed as: itself, or its kind in all experts."""
    experts, _, kind = name.rpartition(".experts.")
    return f"{experts}.experts.{kind.split('.')[-1]}" if experts else name
