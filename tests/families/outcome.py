"""What nearplane does with the tiny model of a family: the whole way, from a plan to writing text.

Everything is compared: the loaded checkpoint with its dequantized weights, these with the model
before it was quantized, and what is written again with what was loaded.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nearplane as npl
from nearplane.evaluate.perplexity import losses
from nearplane.evaluate.verify import verify, verify_against
from nearplane.methods import ECLQ, HPTQ, Method
from nearplane.pipeline import quantize
from nearplane.plan.survey import survey
from nearplane.types import NearplaneError
from tests.families import zoo

# so many bits that the model hardly changes: its divergence then says that inputs were right
METHODS = {"hptq": HPTQ(bpw=9.5), "eclq": ECLQ(bpw=9.5)}
LENGTH, SEQUENCES = 24, 3
WORKS = "works"
REFUSED = "refused: "
# ‖logits − the original's‖ over the logits' spread. 9.5 bits leave an error of 2^-9 a weight
FAR = 0.2
# why a part stays, by how the sentence goes on
WHY = {
    "stays as it is: it c": "router",
    "stays as it is: it i": "beside the blocks",
    "stays as it is: a re": "tiny",
    "stays as it is: it s": "shared",
    "stays as it is: it h": "more than a table",
    "was not reached by a": "not reached",
}
# of float32 sums in another order, over the largest logit
DIGITS = 1e-4


@dataclass
class Outcome:
    """What became of a family.

    - `said`: "works", or "refused: " and the sentence, or why transformers does not run it.
    - `layers`: how many were quantized. `kept`: sentences on what stays as it is.
    """

    family: str
    said: str
    layers: int = 0
    kept: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return the outcome as a row of docs/FAMILIES.md."""
        layers = str(self.layers or "")
        return f"| `{self.family}` | {self.said} | {layers} | {', '.join(self.parts())} |"

    def parts(self) -> list[str]:
        """Return what stays as it is, without the numbers of blocks, each kind once."""
        found = {}
        for sentence in self.kept:
            name, _, rest = sentence.partition(" ")
            name = ".".join(part for part in name.split(".") if not part.isdecimal())
            name = ".".join(name.split(".")[-2:]) if "outside of" not in rest else name
            kind = rest.split(")")[0].strip("(") if rest.startswith("(") else WHY.get(rest[:20], "")
            found[f"{name} ({kind})"] = True
        return list(found)


def outcome(
    family: str, methods: dict[str, Method] = METHODS, stored: torch.dtype = torch.float32
) -> Outcome:
    """Return what becomes of a family's tiny model under some methods, computed in float32.

    - `stored`: the type of the model's files.
    """
    for reasons in (zoo.KNOWN_UNBUILDABLE, zoo.NOT_RELOADABLE):
        if family in reasons:
            return Outcome(family, f"not run by transformers: {reasons[family]}")
    found = Outcome(family, WORKS)
    try:
        with tempfile.TemporaryDirectory() as path:
            model: Any = zoo.tiny_model(family)
            source = Path(path) / "model"
            model.to(stored).save_pretrained(source)
            if stored != torch.float32:
                model = type(model).from_pretrained(source, dtype=torch.float32).eval()
            for name, method in methods.items():
                go_all_the_way(model, source, Path(path) / name, method, found)
    except NearplaneError as error:
        found.said = f"{REFUSED}{str(error).replace(path, '')}"
    return found


def go_all_the_way(
    model: nn.Module, source: Path, out: Path, method: Method, found: Outcome
) -> None:
    """Plan, quantize, verify, load, run, write and save again; AssertionError if one is off."""
    tokens = torch.randint(
        3, vocabulary(model), (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    plan = survey(source, method, arithmetic="float32")
    report = quantize(plan, out, method, tokens)
    found.layers, found.kept = len(report["layers"]), list(report["left_out"])
    assert not verify(str(out)).problems
    assert not verify_against(str(out), str(source), tokens).problems
    loaded, plain = (load(out, dequantize=plain) for plain in (False, True))
    mine, theirs, original = (logits(m, tokens) for m in (loaded, plain, model))
    close(mine, theirs, "kernels")
    scored = losses(loaded, tokens, LENGTH - 1)
    whole = nn.functional.cross_entropy(mine[:, :-1].mT, tokens[:, 1:], reduction="none")
    close(scored.float(), whole, "losses")
    spread = float((original - original.mean(-1, keepdim=True)).norm())
    off = float((theirs - original).norm()) / spread
    assert off < FAR, f"the quantized model is off by {off:.3f}"
    if writes(model, tokens):
        assert written(loaded, tokens).equal(written(plain, tokens)) or near_ties(theirs)
    loaded.save_pretrained(out.with_suffix(".again"))
    close(logits(load(out.with_suffix(".again")), tokens), mine, "saved again")


def load(checkpoint: Path, dequantize: bool = False) -> Any:
    return npl.load(checkpoint, dequantize=dequantize, arithmetic="float32")


def vocabulary(model: Any) -> int:
    return model.config.get_text_config().vocab_size


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits.float()


def written(model: Any, tokens: Tensor) -> Tensor:
    """Return what the model goes on with, without sampling."""
    return model.generate(
        input_ids=tokens[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )


def writes(model: Any, tokens: Tensor) -> bool:
    """Whether transformers itself writes text with the model that was not quantized."""
    try:
        written(model, tokens)
    # classes without generation, and faults of some
    except Exception:
        return False
    return True


def close(found: Tensor, expected: Tensor, what: str) -> None:
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    assert off < DIGITS, f"{what}: off by {off:.1e}"


def near_ties(scores: Tensor) -> bool:
    """Whether two tokens are so close that digits decide between them."""
    first, second = scores[0, -1].topk(2).values
    return bool(first - second < 1e-3 * first.abs())
