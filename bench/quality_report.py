"""What bench/quality.py found: lines of a table, a JSON file, a plot.

This file imports only the standard library until it draws.
"""

import json
from pathlib import Path
from typing import Any

COLUMNS = (("bits", 8), ("perplexity", 11), ("KL", 9), ("top-1 %", 8), ("time", 8), ("peak", 9))
TITLE_WIDTH = 34
TALLEST = 8  # times the perplexity of the model as it is; what lies above is not drawn
OURS = {"rtn", "gptq", "ssqr", "hrtn", "hptq", "watersic", "eclq"}


def heading() -> str:
    """Return the table's first line."""
    return f"{'method':{TITLE_WIDTH}}" + "".join(f"{title:>{n}}" for title, n in COLUMNS)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    title = f"{row['title']:{TITLE_WIDTH}.{TITLE_WIDTH}}"
    if "failed" in row:
        return f"{title}  not measured: {row['failed']}"
    cells = [
        f"{row['bpw']:.3f}",
        f"{row['perplexity']:.3f}" if row["perplexity"] < 1e4 else f"{row['perplexity']:.2g}",
        f"{row['kl']:.4f}",
        f"{100 * row['top1']:.2f}",
        f"{row['seconds']:.0f} s" if row["seconds"] else "",
        f"{row['peak_bytes'] / 2**30:.2f} GiB" if row["peak_bytes"] else "",
    ]
    return title + "".join(f"{c:>{n}}" for c, (_, n) in zip(cells, COLUMNS, strict=True)).rstrip()


class Store:
    """The rows measured so far, and the file that holds them after each."""

    def __init__(self, file: Path | None, settings: dict[str, Any], append: bool):
        self.file, self.settings = file, settings
        self.rows: list[dict[str, Any]] = []
        if append and file is not None and file.exists():
            stored = json.loads(file.read_text())
            self.check(stored["settings"])
            self.rows = stored["rows"]

    def check(self, stored: dict[str, Any]) -> None:
        """Refuse to put rows beside those of other tokens or other windows."""
        for name, value in self.settings["compared"].items():
            if stored["compared"].get(name) != value:
                raise SystemExit(
                    f"{self.file} was made with {name} = {stored['compared'].get(name)!r}, "
                    f"not {value!r}: its rows cannot stand beside these"
                )

    def measured_throughput(self, name: str) -> bool:
        """Whether there is a row of that name that did not fail."""
        return any(row["name"] == name and "failed" not in row for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, in the place of an older one of its name, and write the file."""
        names = [other["name"] for other in self.rows]
        if row["name"] in names:
            self.rows[names.index(row["name"])] = row
        else:
            self.rows.append(row)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.file.with_suffix(self.file.suffix + ".unfinished")
            content = {"settings": self.settings, "rows": self.rows}
            unfinished.write_text(json.dumps(content, indent=2) + "\n")
            unfinished.replace(self.file)


def plot(rows: list[dict[str, Any]], labels: dict[str, str], file: Path) -> None:
    """Draw perplexity against stored bits per weight, one line a method; ablations are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    drawn = [row for row in rows if "failed" not in row and "+" not in row["name"]]
    lines = [method for method in labels if method not in ("bf16", "llamacpp")]
    colour = {method: f"C{n}" for n, method in enumerate(lines)} | {"llamacpp": "black"}
    floor = next((row["perplexity"] for row in drawn if row["method"] == "bf16"), None)
    for method in [m for m in colour if m in {row["method"] for row in drawn}]:
        mine = sorted((row["bpw"], row["perplexity"]) for row in drawn if row["method"] == method)
        # llama.cpp's types are no family whose points a line could join
        style = "-o" if method in OURS else "x" if method == "llamacpp" else "--s"
        look = {"color": colour[method], "markersize": 5, "label": labels[method]}
        axes.plot(*zip(*mine, strict=True), style, **look)
    if floor is not None:
        axes.axhline(floor, color="black", linestyle=":", linewidth=1, label="bf16")
        axes.set_ylim(0.97 * floor, TALLEST * floor)
    axes.set(xlabel="stored bits per weight of the linear layers", ylabel="perplexity")
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
