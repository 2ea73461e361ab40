"""docs/FAMILIES.md says what becomes of every family that transformers registers."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import nearplane as npl
from nearplane.export.linear import CompressedLinear
from nearplane.methods import ECLQ, HPTQ
from nearplane.pipeline import quantize
from tests.families import table, zoo
from tests.families.outcome import WORKS, outcome

# of every kind of block: what differs is named. All families are in `make test-long`
SOME = [
    "bloom",  # blocks return tuples, attention with ALiBi
    "deepseek_v3",  # experts with a router and shared ones, dense blocks before
    "falcon_h1",  # attention beside Mamba in one block
    "gemma3n_text",  # keys and values shared by blocks, hidden states of four dimensions
    "inkling_text",  # an embedding with a norm inside
    "olmo",  # norms without weights: nothing is left uncompressed
    "glm_moe_dsa",  # chosen positions that a block hands to the next
    "hrm_text",  # blocks called several times
    "llava",  # a tower for images
    "openai-gpt",  # blocks return a list; Conv1D
    "rwkv",  # a state between tokens
    "xlnet",  # two streams of its own
    "zamba2",  # layers tied across blocks
]


def test_every_family_has_a_row():
    """Of the installed transformers: another version has others, which the next run will say."""
    assert f"transformers {transformers.__version__} registers" in table.PATH.read_text()
    assert list(table.rows()) == zoo.families()


def test_nearly_all_families_work():
    """Of those that transformers builds, runs on text and loads again: 95 %, and none fails."""
    rows = [row for row in table.rows().values() if f"| {table.NOT_RUN}" not in row]
    works = [row for row in rows if f"| {WORKS} |" in row]
    assert len(works) >= 0.95 * len(rows)
    assert all(f"| {WORKS} |" in row or "| refused: " in row for row in rows)


@pytest.mark.whole_run
@pytest.mark.parametrize("family", SOME)
def test_a_family_goes_all_the_way(family):
    assert outcome(family, {"eclq": ECLQ(bpw=9.5)}).row() == table.rows()[family]


@pytest.mark.whole_run
@pytest.mark.parametrize(
    "family",
    [
        "gemma3_text",  # a scale that the class computes
        "gptj",  # a table of positions that blocks compute
        "mamba",  # code that asks for the type of the head's weight
        "step3p7",  # a configuration of every block's own
    ],
)
def test_a_family_stored_in_16_bits_is_computed_in_32(family):
    """As on processors that multiply bfloat16 slowly: in every way as a float32 model."""
    found = outcome(family, {"hptq": HPTQ(bpw=9.5)}, stored=torch.bfloat16)
    assert found.row() == table.rows()[family]


def test_tied_layers_are_dequantized_and_saved(tmp_path):
    """Blocks share the weights of their attention: one record, and one weight afterwards."""
    model = zoo.tiny_model("zamba2")
    model.save_pretrained(tmp_path / "model")
    tokens = torch.randint(3, 99, (2, 24))
    quantize(tmp_path / "model", tmp_path / "out", HPTQ(bpw=9.5), tokens)
    plain = npl.load(tmp_path / "out", dequantize=True)
    assert not any(isinstance(module, CompressedLinear) for module in plain.modules())
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        assert again(tokens).logits.equal(plain(tokens).logits)


@pytest.mark.long
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", zoo.families())
def test_every_family_is_what_its_row_says(family, stored):
    assert outcome(family, stored=stored).row() == table.rows()[family]
