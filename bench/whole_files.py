"""KL divergence to the model against the bytes of the whole file: nearplane and llama.cpp's types.

    .venv/bin/python bench/whole_files.py --model FILE.gguf --calibration FILE --text FILE [FILE]
    .venv/bin/python bench/whole_files.py --plot docs/whole_files.svg RESULTS.json [RESULTS.json]
    .venv/bin/python bench/whole_files.py --tiny

Everything is quantized, embedding and output head included, as a user's command does it: `nearplane
quantize --size`. Rows "Body" leave the embedding as it is. Rows "GGUF" are files for llama.cpp that
nearplane makes: `--for gguf --size`. llama.cpp quantizes the same file by its
own function, with an importance matrix of the text alone, if MODEL is a GGUF file; what it does
where 256 does not divide the columns, and with the embedding, is its own choice. A file that is
quantized already lies on a grid, which types of the same kind find again. Each result is evaluated
on the same windows, its weights in the model's own type and products in float32.
"""

import argparse
import contextlib
import copy
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny
from peers.environment import FOLDER, InstallError, install, peer_python
from quality_rows import LABELS
from speed import HERE, ROOT, machine

BITS = [2.5, 3.0, 3.5, 4.0, 4.5]
TYPES = "Q2_K IQ2_XS IQ3_XXS Q3_K_S Q3_K_M Q3_K_L IQ4_XS Q4_0 Q4_K_S Q4_K_M Q5_K_M".split()
PACKAGES = ("gptqmodel", "llmcompressor", "autoround")
TITLES = f"{'':22}{'MB':>9}{'bits':>7}{'predicted':>11}  " + "{}"
COLUMNS = f"{'KL':>9}{'99.9 %':>9}{'top-1 %':>9}{'perplexity':>12}  "


def main() -> int:
    args = parse()
    if args.plot:
        plot(args.results, args.plot)
        return 0
    with tiny.supplied(args, model="model", calibration="text.txt", text="text.txt", work="work"):
        args.text = args.text if isinstance(args.text, list) else [args.text]
        return Bench(args).run()


class Bench:
    """One model, its texts, and the rows that were measured."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.rows = args, []
        args.work.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """Measure all rows; the exit status is 1 if none could be."""
        from nearplane.model.open_model import open_model

        source = open_model(str(self.args.model))
        self.source, self.numbers = source, sum(p.numel() for p in source.model.parameters())
        names = [text.stem for text in self.args.text]
        print(TITLES.format("".join(f"{name:^39}  " for name in names)))
        print(TITLES.format(COLUMNS * len(names)), flush=True)
        for bits in self.args.bits:
            size = f"{bits * self.numbers / 8e6:.3f}MB"
            self.ours(f"ECLQ, {bits:g} in all", ["--size", size])
        for bits in self.args.body:
            self.ours(f"Body at {bits:g}", ["--bpw", str(bits), "--keep", "embedding"])
        for bits in self.args.gguf:
            self.gguf(bits)
        for name in self.args.packages:
            self.package(name)
        if str(self.args.model).endswith(".gguf") and self.args.types:
            self.theirs()
        return int(not any("scores" in row for row in self.rows))

    def ours(self, title: str, options: list[str]) -> None:
        """Quantize by nearplane's command, and evaluate."""
        words, out = self.words(options)
        self.row(title, lambda: nearplane(words), out)

    def gguf(self, bits: float) -> None:
        """Quantize for a GGUF file of so many bits a number, and evaluate that file."""
        size = f"{bits * self.numbers / 8e6:.3f}MB"
        words, out = self.words(["--for", "gguf", "--size", size])
        self.row(f"GGUF, {bits:g} in all", lambda: nearplane(words), out / "model.gguf")

    def words(self, options: list[str]) -> tuple[list[str], Path]:
        """Return nearplane's command line, and where it writes; nothing is there."""
        out = self.args.work / "nearplane"
        shutil.rmtree(out, ignore_errors=True)
        words = ["quantize", str(self.args.model), str(out), *options]
        words += ["--calibration", str(self.args.calibration), "--threads", str(self.args.threads)]
        words += ["--sequences", str(self.args.sequences), "--length", str(self.args.length)]
        return words, out

    def theirs(self) -> None:
        """Quantize by llama.cpp's own function, type by type, and evaluate."""
        try:
            install("llamacpp", self.args.peers)
        except InstallError as error:
            print(f"llama.cpp: not installed: {error}")
            return
        prepared, out = self.args.work / "prepared", self.args.work / "llamacpp"
        prepared.mkdir(exist_ok=True)
        self.write_importance(prepared / "imatrix.npz")
        link = prepared / "model.gguf"
        link.unlink(missing_ok=True)
        link.symlink_to(self.args.model.resolve())
        python = str(peer_python("llamacpp", self.args.peers))
        for name in self.args.types:
            shutil.rmtree(out, ignore_errors=True)
            words = [str(HERE / "llamacpp_run.py"), str(prepared), str(out), "--type", name]
            words += ["--again", "--threads", str(self.args.threads)]
            self.row(f"llama.cpp {name}", partial(run, [python, *words]), out / "model.gguf")

    def package(self, name: str) -> None:
        """Quantize by another package at its widths, as it leaves the embedding, and evaluate."""
        try:
            install(name, self.args.peers)
        except InstallError as error:
            print(f"{name}: not installed: {error}")
            return
        model, tokens = self.dense()
        out, python = self.args.work / name, str(peer_python(name, self.args.peers))
        for bits in self.args.package_bits:
            shutil.rmtree(out, ignore_errors=True)
            words = [python, str(HERE / f"{name}_run.py"), str(model), str(tokens), str(out)]
            words += ["--bits", str(bits), "--group-size", str(self.args.group_size)]
            self.row(f"{LABELS[name]}, {bits} bits", partial(run, words), out)

    def dense(self) -> tuple[Path, Path]:
        """Write the model as a folder, and the calibration's tokens; once."""
        from safetensors.torch import save_file

        from nearplane.walk.calibration import CalibrationRequest, calibrate

        model, tokens = self.args.work / "dense", self.args.work / "tokens.safetensors"
        if not model.exists():
            # of a GGUF file, transformers would save nothing
            config = copy.deepcopy(self.source.model.config)
            vars(config).pop("quantization_config", None)
            plain = type(self.source.model)(config).to(self.source.model.dtype)
            plain.load_state_dict(self.source.model.state_dict())
            plain.save_pretrained(model)
            self.source.tokenizer.save_pretrained(model)
            wanted = CalibrationRequest(self.args.sequences, self.args.length)
            cut, _ = calibrate(self.args.calibration, self.source.tokenizer, wanted)
            save_file({"tokens": cut}, tokens)
        return model, tokens

    def write_importance(self, path: Path) -> None:
        """Write the mean squares of every column's inputs, on nearplane's calibration tokens."""
        sys.path.insert(0, str(HERE))
        import numpy as np
        from gguf_of import importance, linears_of

        from nearplane.walk.calibration import CalibrationRequest, calibrate

        wanted = CalibrationRequest(self.args.sequences, self.args.length)
        tokens, _ = calibrate(self.args.calibration, self.source.tokenizer, wanted)
        linears = linears_of(self.source.model)
        squares = importance(self.source.model, linears, tokens)
        np.savez(path, **{f"{name}.weight": value for name, value in squares.items()})

    def row(self, title: str, made: Callable[[], str], result: Path) -> None:
        """Make a file, evaluate it, and print and store the row.

        - `made`: returns why it could not; "" if it could.
        """
        started = time.perf_counter()
        failed = made()
        row: dict[str, Any] = {"title": title, "seconds": time.perf_counter() - started}
        if failed:
            row["failed"] = failed[:200]
            print(f"{title:22}  not measured: {row['failed']}", flush=True)
        else:
            row["bytes"] = bytes_of(result)
            row["predicted_kl"] = predicted_kl(result)
            row["scores"] = [self.scores(result, text) for text in self.args.text]
            print(line(row, self.numbers), flush=True)
        self.rows.append(row)
        if self.args.json:
            about = {"model": self.args.model.name, "numbers": self.numbers, "machine": machine()}
            about["texts"] = [text.stem for text in self.args.text]
            self.args.json.write_text(json.dumps(about | {"rows": self.rows}, indent=2) + "\n")

    def scores(self, result: Path, text: Path) -> dict[str, float]:
        """Return how a result predicts a text."""
        import nearplane as npl
        from nearplane.evaluate.bits import is_checkpoint
        from nearplane.evaluate.divergence import divergence
        from nearplane.evaluate.perplexity import WindowOptions, text_windows
        from nearplane.model.open_model import open_model

        if is_checkpoint(str(result)):
            model = npl.load(str(result), dequantize=True)
        elif result.is_dir():
            model = self.decoded(result)
        else:
            model = open_model(str(result)).model
        cut = WindowOptions(context=self.args.context, windows=self.args.windows)
        windows = text_windows(text, self.source.tokenizer, cut)
        found = divergence(widened(model), widened(self.source.model), windows, cut)
        scores = {"kl": found.kl, "kl_999": found.kl_999, "top1": found.top1}
        return scores | {"perplexity": found.model.perplexity, "tokens": found.tokens}

    def decoded(self, result: Path) -> Any:
        """Return the model with another package's weights, decoded, in its own type."""
        sys.path.insert(0, str(HERE))
        from decode import decode

        from nearplane.model.open_model import open_model

        model = open_model(str(self.args.model)).model
        state = model.state_dict()
        for name, value in decode(result).items():
            state[name].copy_(value)
        return model


def widened(model: Any) -> Any:
    """Return a model, rounded to its stored type before, with products in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


def nearplane(words: list[str]) -> str:
    """Run nearplane's command line, silently; return why it failed, or nothing."""
    from nearplane.cli.app import app

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            failed = app(words, standalone_mode=False)
        # whatever it is, the row shows it
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    # the command line prints its errors, and returns its exit status
    return (said.getvalue().strip().splitlines() or ["no message"])[-1] if failed else ""


def run(command: list[str]) -> str:
    """Run another program; return its last line if it failed, or nothing."""
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return "" if not done.returncode else said[-1] if said else "no message"


def line(row: dict[str, Any], numbers: int) -> str:
    """Return one row of the table."""
    size = row["bytes"]
    said = f"{row['title']:22}{size / 1e6:9.2f}{8 * size / numbers:7.3f}"
    said += f"{row['predicted_kl']:11.4f}  " if row.get("predicted_kl") else " " * 13
    for each in row["scores"]:
        said += f"{each['kl']:9.4f}{each['kl_999']:9.3f}{100 * each['top1']:9.2f}"
        said += f"{each['perplexity']:12.3f}  "
    return said.rstrip()


def bytes_of(result: Path) -> int:
    """Return the bytes of the weights' files: tokenizers are left out of nearplane's folder."""
    files = result.glob("*.safetensors") if result.is_dir() else [result]
    return sum(file.stat().st_size for file in files)


def predicted_kl(result: Path) -> float | None:
    """Return the KL divergence that was expected when rates were chosen; None for llama.cpp."""
    file = result / "report.json"
    return json.loads(file.read_text())["recipe"].get("predicted_kl") if file.is_file() else None


def plot(results: list[Path], file: Path) -> None:
    """Draw KL divergence against bytes, a panel a model and text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "nearplane"
    found = [json.loads(result.read_text()) for result in results]
    panels = [(each, number) for each in found for number in range(len(each["texts"]))]
    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(5 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    kinds = {"ECLQ": "-o", "GGUF": "-^", "Body": "--s", "llama.cpp": "kx"}
    kinds |= {LABELS[name]: look for name, look in zip(PACKAGES, ("+", "^", "v"), strict=True)}
    labels = {"ECLQ": "nearplane", "Body": "nearplane, embedding as it is"}
    labels["GGUF"] = "nearplane, for llama.cpp"
    for axes, (each, number) in zip(grid[0], panels, strict=True):
        for kind, look in kinds.items():
            rows = [
                row for row in each["rows"] if row["title"].startswith(kind) and "scores" in row
            ]
            points = sorted((r["bytes"] / 1e6, r["scores"][number]["kl"], r["title"]) for r in rows)
            if not points:
                continue
            xs, ys, _ = zip(*points, strict=True)
            axes.plot(xs, ys, look, label=labels.get(kind, kind))
            for x, y, title in points if kind == "llama.cpp" else []:
                axes.annotate(title.removeprefix("llama.cpp "), (x, y), fontsize=6)
        axes.set(xlabel="MB of the whole file", title=f"{each['model']}\n{each['texts'][number]}")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    grid[0][0].set_ylabel("KL divergence to the model, nats a token")
    grid[0][0].legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = not tiny.ASKED and "--plot" not in sys.argv
    parser.add_argument("results", type=Path, nargs="*", help="JSON files, with --plot")
    parser.add_argument("--model", type=Path, required=asked, help="a GGUF file, or a folder")
    parser.add_argument("--calibration", type=Path, required=asked)
    parser.add_argument("--text", type=Path, nargs="+", required=asked, help="to evaluate on")
    parser.add_argument("--sequences", type=int, default=48)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--bits", type=float, nargs="*", default=BITS, help="a number of the file")
    parser.add_argument("--body", type=float, nargs="*", default=[2.125, 3.125])
    size = "bits a number of the file that nearplane makes for llama.cpp"
    parser.add_argument("--gguf", type=float, nargs="*", default=[], help=size)
    parser.add_argument("--types", nargs="*", default=TYPES, help="llama.cpp's file types")
    parser.add_argument("--packages", nargs="*", default=[], choices=PACKAGES)
    parser.add_argument("--package-bits", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--group-size", type=int, default=64, help="of other packages")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every row here")
    parser.add_argument("--plot", type=Path, help="only draw the results that are given")
    parser.add_argument("--peers", type=Path, default=FOLDER, help="the peers' environments")
    parser.add_argument("--work", type=Path, default=ROOT / "bench-out" / "whole-files")
    small = {"sequences": 4, "length": 32, "context": 32, "windows": 2, "bits": [8.0]}
    return tiny.parse(parser, **small, body=[], gguf=[8.0], work=None, threads=1)


if __name__ == "__main__":
    sys.exit(main())
