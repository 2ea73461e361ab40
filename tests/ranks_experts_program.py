"""A program that torchrun starts several of: experts whose tokens come to different processes."""

import copy
import sys
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn

from nearplane.methods import ECLQ, HPTQ, RTN, Method
from nearplane.walk import walk as walk_file
from nearplane.walk.hessian import HessianSum
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.walk import Walk
from tests.ranks_program import of_first, run
from tests.walk import moe
from tests.walk.tiny import TOKENS

LIMIT = 1e-5  # as in tests/walk/test_experts.py
# six tokens for eight experts: most of them get tokens in one process only
FEW = torch.randint(2, 61, (3, 2), generator=torch.Generator().manual_seed(4))


@dataclass
class Watched(Walk):
    """A walk that keeps what each layer's Hessian was."""

    seen: dict[str, Tensor] = field(default_factory=dict)

    def rounder_for(self, found):
        rounder = super().rounder_for(found)
        basis_of = rounder.basis_of

        def noted(inputs, layers):
            for layer in layers:
                self.seen[layer.name] = inputs.hessian.clone()
            return basis_of(inputs, layers)

        rounder.basis_of = noted
        return rounder


def walked(model: nn.Module, method: Method, tokens: Tensor, ranks: Ranks) -> tuple[Walk, dict]:
    """Return a finished walk over a copy of `model`, and weight and report of every layer."""
    walk = Watched(copy.deepcopy(model), method, tokens, ranks=ranks)
    if method.allocates:
        walk.allocate()
    return walk, {layer.name: (weight, report) for layer, weight, report in walk}


def without_expert(family: str, index: int, **sizes: int) -> nn.Module:
    """Return a model with an expert that no token goes to."""
    known = moe.FAMILIES[family]
    model = known.model(**sizes)
    model.get_submodule(known.router).e_score_correction_bias[index] = -1e4
    return model


def hessians_are_as_alone() -> None:
    """With values that no Hessian decides, so that all processes' sums are of the same inputs."""
    ranks = Ranks.joined()
    models = [
        (moe.FAMILIES["mixtral"].model(), TOKENS),
        (moe.FAMILIES["gpt_oss"].model(), TOKENS),
        (without_expert("deepseek_v3", 3), TOKENS),
        (without_expert("deepseek_v3", 3), FEW),
        (moe.FAMILIES["qwen3_moe"].model(), FEW),
    ]
    for model, tokens in models:
        alone, hessians = of_first(partial(of_layers, model, tokens, ALONE))
        shared, found = of_layers(model, tokens, ranks)
        assert shared == alone
        for name, hessian in hessians.items():
            assert (found[name] - hessian).norm() <= LIMIT * hessian.norm(), name


def of_layers(model: nn.Module, tokens: Tensor, ranks: Ranks) -> tuple[list, dict[str, Tensor]]:
    """Return what tokens came to layers and what became of them, and the layers' Hessians."""
    walk, found = walked(model, RTN(bits=6), tokens, ranks)
    reports = [report for _, report in found.values()]
    facts = [(r.name, r.tokens, r.facts.get("borrowed"), r.fallback) for r in reports]
    return [walk.arrivals, walk.fallbacks, facts], walk.seen


def everybody_has_the_same() -> None:
    """Records, bit by bit, and losses near to those of one process."""
    ranks = Ranks.joined()
    model = without_expert("deepseek_v3", 1, n_routed_experts=4, num_hidden_layers=2)
    for method in (HPTQ(bpw=6.0), ECLQ(bpw=9.5)):
        _, found = walked(model, method, TOKENS, ranks)
        for weight, _ in found.values():
            record = weight.record.numpy().tobytes()
            assert ranks.bytes_of_first(record) == record
        shared = loss_of(found)
        one = of_first(lambda method=method: loss_of(walked(model, method, TOKENS, ALONE)[1]))
        # tokens are held out by process, and few integers are as near as others
        assert abs(shared - one) <= 0.1 * one, (method.name, shared, one)


def loss_of(found: dict) -> float:
    return sum(float(report.loss) for _, report in found.values())


def some_processes_see_nothing() -> None:
    """The case is there: an expert with tokens in some processes only."""
    ranks, lonely = Ranks.joined(), 0
    add_up = HessianSum.add_up

    def watched(moment: HessianSum, among: Ranks) -> None:
        nonlocal lonely
        own = moment.tokens
        add_up(moment, among)
        lonely += own == 0 and moment.tokens > 0

    with patch.object(HessianSum, "add_up", watched):
        walked(moe.FAMILIES["qwen3_moe"].model(), HPTQ(bpw=6.0), FEW, ranks)
    assert ranks.total(int(lonely)) > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    # several batches, so that some of them do not reach an expert
    with patch.object(walk_file, "BATCH_TOKENS", 48):
        run(globals(), sys.argv[1:])
