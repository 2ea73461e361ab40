"""Notebooks run: their cells in this process on a tiny model, and as they are in `test-long`."""

import json
import re

import pytest

from nearplane.cli.demo import embedded_model
from tests.cli.fences import ROOT

NOTEBOOKS = ROOT / "docs" / "notebooks"
# what stands for the values of a notebook's cell of parameters
SMALL = {
    "LAYER": "model.layers.1.self_attn.o_proj",
    "SEQUENCES": 4,
    "LENGTH": 64,
    "WINDOWS": 2,
    "BITS": 5,
    "GROUP_SIZE": 32,
}
PAGES = ["one_layer", "comparison"]


def cells(name: str) -> list[dict]:
    read = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    return [cell for cell in read["cells"] if cell["cell_type"] == "code"]


def test_all_notebooks_are_run():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(PAGES)


@pytest.mark.whole_run
@pytest.mark.parametrize("name", PAGES)
def test_cells_run_on_a_tiny_model(name, model_dir, monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    # a tiny model's layers cannot meet the rates of real ones
    names = {"__name__": name}
    for cell in cells(name):
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            assigned = set(re.findall(r"\b[A-Z_]{4,}\b(?=.* = )", source))
            assert assigned <= SMALL.keys() | {"MODEL"}
            names |= SMALL | {"MODEL": model_dir}
            continue
        exec(compile(source, f"a cell of {name}", "exec"), names)


@pytest.mark.parametrize("name", PAGES)
def test_outputs_are_there_and_without_errors(name):
    outputs = [output for cell in cells(name) for output in cell["outputs"]]
    assert any(output["output_type"] == "stream" for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    # nobody's folders are shown
    assert "/tmp" not in json.dumps(outputs) and "/home" not in json.dumps(outputs)


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
def test_notebooks_run_as_they_are(name):
    import nbformat
    from nbclient import NotebookClient

    assert embedded_model()
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(ROOT)}}).execute()
