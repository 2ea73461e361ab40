"""docs/FAMILIES.md: one row a family, written by a run and compared with the next."""

from collections import Counter
from pathlib import Path

import transformers

from tests.families.outcome import WORKS, Outcome

PATH = Path(__file__).parents[2] / "docs" / "FAMILIES.md"
NOT_RUN = "not run by transformers"
TEXT = """# Families

What nearplane does with every language model class that transformers {version} registers, with or
without images and sound: of the {run} families that transformers runs on text alone and loads
again, {works} work, {refused} are refused in one sentence, {faults} fail.
`python bench/families.py --write` makes this page; `make test-long` compares it with a new run.

Each row is a tiny random model, made from the family's configuration class
(`tests/families/zoo.py`) and taken the whole way by HPTQ and by ECLQ at 9.5 bits
(`tests/families/outcome.py`): plan, quantize, verify against the model, load, run, write text, save
and load again. The kernels must agree with the dequantized weights, and these with the model before
it was quantized.

What stays as it is keeps its weights in the model's own type. "router" chooses or weighs experts,
"beside the blocks" is outside of the language model's blocks, "tiny" would not get smaller, "not
reached" saw no token, "shared" has the weight of several parts, "more than a table" is an embedding
with other weights; of others the class is named: convolutions and other modules that are no
plain linear layer.

| family | outcome | layers | stays as it is |
|---|---|---|---|
{rows}
"""


def written(outcomes: list[Outcome]) -> str:
    """Return the whole page."""
    run = [each for each in outcomes if not each.said.startswith(NOT_RUN)]
    kinds = Counter(each.said.split(":")[0] for each in run)
    return TEXT.format(
        version=transformers.__version__,
        works=kinds[WORKS],
        run=len(run),
        refused=kinds["refused"],
        faults=len(run) - kinds[WORKS] - kinds["refused"],
        rows="\n".join(each.row() for each in outcomes),
    )


def rows() -> dict[str, str]:
    """Return family -> row of the page."""
    lines = PATH.read_text().splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}
