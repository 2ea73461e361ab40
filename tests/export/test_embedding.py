"""A tied embedding is one record: looked up in, multiplied by, written again and decoded."""

import copy
import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import nearplane as npl
from nearplane.evaluate.verify import verify, verify_against
from nearplane.export.embedding import CompressedEmbedding, TiedLinear
from nearplane.export.linear import CompressedLinear
from nearplane.methods import ECLQ, HPTQ, RTN, SSQR
from nearplane.model.selection import Rules
from nearplane.pipeline import Watcher, quantize
from nearplane.types import NearplaneError
from tests.families import zoo

TOKENS = torch.randint(3, 99, (5, 24), generator=torch.Generator().manual_seed(0))
METHODS = {m.name: m for m in (HPTQ(bpw=9.5), ECLQ(bpw=9.5), RTN(bits=8), SSQR(bits=8))}
pytestmark = pytest.mark.whole_run
# gemma3 scales what it looks up; gpt2 calls its embedding another name; qwen2 has biases
FAMILIES = ["llama", "gemma3_text", "gpt2", "qwen2"]


def written(family, path, **options):
    """Write and return a model of one block."""
    config = zoo.tiny_config(family)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    config.tie_word_embeddings = options.get("tied", True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(path)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A model, its directory, and that of its checkpoint."""
    path = tmp_path_factory.mktemp(request.param)
    model = written(request.param, path / "model")
    # steps of rows are ECLQ's; the others take a third of its time
    method = METHODS["eclq" if request.param == "llama" else "hptq"]
    quantize(path / "model", path / "out", method, TOKENS)
    return model, path / "model", path / "out"


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_it_computes_what_the_decoded_model_does(case):
    model, _, out = case
    loaded, plain = npl.load(out), npl.load(out, dequantize=True)
    assert isinstance(loaded.get_input_embeddings(), CompressedEmbedding)
    assert isinstance(loaded.get_output_embeddings(), TiedLinear)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=1e-4, atol=1e-4)
    # 9.5 bits leave an error of about 2^-8 a weight
    assert (logits(plain) - logits(model)).norm() < 0.02 * logits(model).norm()
    some = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert loaded.generate(TOKENS[:1], **some).equal(plain.generate(TOKENS[:1], **some))


def test_the_file_holds_one_record_and_its_certificate_is_true(case):
    _, source, out = case
    names = npl.load(out).state_dict().keys()
    embedding = [n for n in names if "embed" in n or "wte" in n]
    assert [n for n in embedding if n.endswith("record")] and "lm_head.weight" not in names
    assert not verify(str(out)).problems
    found = verify_against(str(out), str(source), TOKENS)
    assert not found.problems and any("losses recomputed" in s for s in found.checked)


def test_it_is_written_again(case, tmp_path):
    _, _, out = case
    loaded = npl.load(out)
    loaded.save_pretrained(tmp_path / "again")
    assert logits(npl.load(tmp_path / "again")).equal(logits(loaded))
    assert not verify(str(tmp_path / "again")).problems
    plain = npl.load(out, dequantize=True)
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert logits(again).equal(logits(plain))


def test_what_transformers_does_with_models(case):
    _, _, out = case
    loaded = npl.load(out)
    expected = logits(loaded)
    loaded.tie_weights()
    assert logits(loaded).equal(expected)
    copied = copy.deepcopy(loaded)
    assert logits(copied).equal(expected)
    assert copied.get_output_embeddings().shared[0] is copied.get_input_embeddings()
    half = copied.to(torch.bfloat16)
    assert logits(half).dtype == torch.bfloat16
    assert (logits(half) - expected).norm() < 0.05 * expected.norm()
    with pytest.raises(TypeError, match="Embedding"):
        loaded.resize_token_embeddings(200)
    body = AutoModel.from_pretrained(out).eval()
    with torch.no_grad():
        assert body(TOKENS)[0].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_code(method, tmp_path):
    """And the decoder's rows are those of the whole matrix."""
    written("llama", tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", METHODS[method], TOKENS)
    embedding = npl.load(tmp_path / "out").get_input_embeddings()
    index = torch.tensor([[5, 0, 127], [5, 5, 64]])
    assert embedding(index).equal(embedding.weight[index])


@pytest.mark.parametrize("method", METHODS)
def test_a_head_of_its_own_is_a_record_of_its_own(method, tmp_path):
    model = written("llama", tmp_path / "model", tied=False)
    quantize(tmp_path / "model", tmp_path / "out", METHODS[method], TOKENS)
    loaded, plain = npl.load(tmp_path / "out"), npl.load(tmp_path / "out", dequantize=True)
    assert isinstance(loaded.get_input_embeddings(), CompressedEmbedding)
    assert type(loaded.get_output_embeddings()) is CompressedLinear
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=1e-4, atol=1e-4)
    assert (logits(plain) - logits(model)).norm() < 0.02 * logits(model).norm()
    assert not verify(str(tmp_path / "out")).problems
    found = verify_against(str(tmp_path / "out"), str(tmp_path / "model"), TOKENS)
    assert not found.problems and any("losses recomputed" in s for s in found.checked)
    loaded.save_pretrained(tmp_path / "again")
    assert logits(npl.load(tmp_path / "again")).equal(logits(loaded))


@pytest.mark.parametrize("keep", [("embedding",), ("head",), ("embedding", "head")])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_to_be_kept_stays_as_it_is(keep, tied, tmp_path):
    model = written("llama", tmp_path / "model", tied=tied)
    found = quantize(
        tmp_path / "model", tmp_path / "out", METHODS["hptq"], TOKENS, rules=Rules(keep=keep)
    )
    loaded = npl.load(tmp_path / "out")
    wanted = {"embedding", "head"} if tied else set(keep)
    kept = [s for s in found["left_out"] if s.endswith("stays as it is, as asked")]
    assert len(kept) == (1 if tied else len(keep))
    embedding, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert isinstance(embedding, CompressedEmbedding) == ("embedding" not in wanted)
    assert isinstance(head, CompressedLinear) == ("head" not in wanted)
    if "embedding" in wanted:
        assert embedding.weight.equal(model.get_input_embeddings().weight)
    if "head" in wanted:
        assert head.weight.equal(model.get_output_embeddings().weight)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(NearplaneError, match="--keep takes embedding or head, not 'lm_head'"):
        Rules(keep=("lm_head",))


def test_a_skipped_head_keeps_the_embedding_that_it_shares(tmp_path):
    written("llama", tmp_path / "model")
    rules = Rules(skip=("lm_head",))
    found = quantize(tmp_path / "model", tmp_path / "out", METHODS["hptq"], TOKENS, rules=rules)
    assert "model.embed_tokens is skipped as asked" in found["left_out"]


def test_adapters_go_elsewhere(case):
    peft = pytest.importorskip("peft")
    _, _, out = case
    name = "wte" if "transformer" in dir(npl.load(out)) else "lm_head"
    with pytest.raises(NearplaneError, match="compressed embedding"):
        peft.get_peft_model(npl.load(out), peft.LoraConfig(target_modules=[name]))


def test_a_run_goes_on_to_the_same_bytes(tmp_path):
    """The embedding is the first layer that is kept."""
    written("llama", tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "whole", METHODS["eclq"], TOKENS)

    class Stopped(BaseException):
        pass

    def stop(report, layers):
        if report.name.endswith("o_proj"):
            raise Stopped

    run = tmp_path / "model", tmp_path / "out", METHODS["eclq"], TOKENS
    with pytest.raises(Stopped):
        quantize(*run, watcher=Watcher(done=stop))
    quantize(*run, resume=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_a_head_of_its_own_is_not_tied_whatever_the_configuration_says(tmp_path):
    """transformers ties nothing where the files hold another weight for the head."""
    model = written("llama", tmp_path / "model", tied=False)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    quantize(tmp_path / "model", tmp_path / "out", METHODS["hptq"], TOKENS)
    loaded = npl.load(tmp_path / "out")
    assert not loaded.config.tie_word_embeddings
    assert (logits(loaded) - logits(model)).norm() < 0.02 * logits(model).norm()
