"""Python code in README and docs runs as it stands, page by page, and so do files that pages show.

tests/cli/test_serve.py runs blocks marked `server`, tests/cli/test_cited.py commands of nearplane.
"""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from nearplane.methods import METHODS
from tests import forked
from tests.cli.fences import DOCUMENTS, ROOT, Block, blocks

TITLE = re.compile(r'title="([\w.]+)"')
PAGES = [page for page in DOCUMENTS if any(b.language == "python" for b in blocks(page))]
# code of others would not be run; tests/evaluate/test_tasks.py runs the task in YAML
LANGUAGES = {"", "python", "text", "hex", "integers", "json", "yaml"}
TROUBLES = ROOT / "docs" / "guides" / "troubleshooting.md"


@pytest.fixture
def desk(tmp_path, monkeypatch, checkpoint, model_dir, text):
    """Go to a directory with MODEL, out and notes.txt, from which a page's files are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "MODEL").symlink_to(model_dir, target_is_directory=True)
    (tmp_path / "notes.txt").symlink_to(text)
    shutil.copytree(checkpoint, tmp_path / "out")
    methods, threads = dict(METHODS), torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    METHODS.clear()
    METHODS.update(methods)


def test_every_language_is_known():
    named = {b.language for page in DOCUMENTS for b in blocks(page)}
    assert named <= LANGUAGES


@pytest.mark.whole_run
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_runs_as_it_stands(page, desk):
    # README's one layer; a tiny model's layers cannot meet the rate of a real one's
    names = {"weight": torch.randn(48, 32), "hessian": torch.eye(32), "__name__": page.stem}
    for block in blocks(page):
        if block.language == "python" and "server" not in block.words:
            run(block, desk, names)
    for line in lines_of_python(page):
        again(desk)
        file, *words = shlex.split(line)[1:]
        done = forked.run(desk / file, *words, folder=desk)
        assert done.returncode == 0, done.stderr


def run(block: Block, desk: Path, names: dict) -> None:
    """Write a block that has the name of a file to that file; execute any other one."""
    if file := TITLE.search(block.words):
        (desk / file[1]).write_text(block.text)
        return
    if "npl.quantize(" in block.text:
        again(desk)
    code = block.text.replace("bpw=3.125", "bpw=5")
    exec(compile(code, "a block of the page", "exec"), names)


def again(desk: Path) -> None:
    shutil.rmtree(desk / "out", ignore_errors=True)


def lines_of_python(page: Path) -> list[str]:
    """Return the command lines that run a file which the page shows."""
    shown = [file[1] for block in blocks(page) if (file := TITLE.search(block.words))]
    plain = [b.text.replace("\\\n", " ") for b in blocks(page) if not b.language]
    lines = [line.strip() for text in plain for line in text.splitlines()]
    return [line for line in lines if any(line.startswith(f"python {file}") for file in shown)]


def test_files_that_a_page_shows_are_run():
    assert len(lines_of_python(ROOT / "docs/guides/own-method.md")) >= 2


def constants() -> str:
    """Return every text of the package's source, with spaces for what stands in braces."""
    found = []
    for path in sorted((ROOT / "nearplane").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else " " for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return " ".join("\n".join(found).split())


def test_symptoms_are_what_nearplane_says():
    """The first column of a table quotes messages; dots stand for what differs."""
    said, quoted = constants(), re.findall(r"^\| `([^`|]+)`", TROUBLES.read_text(), re.M)
    assert len(quoted) > 25
    parts = [" ".join(part.split()) for quote in quoted for part in quote.split("...")]
    assert [part for part in parts if part not in said] == []
