"""The memory of the passes that measure how sensitive a model is, see walk/sensitivity.py."""

from dataclasses import dataclass

from nearplane.model.output_head import vocabulary
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.walk.sensitivity import HESSIAN_TOKENS, LENGTH, POSITIONS, SEQUENCES

SCORES = 4.5  # copies of all scores of attention: no kernel has float32 and shared heads
LOGITS = 4  # copies of the logits of a pass, and of those that it is compared with


@dataclass(frozen=True)
class ProbeSize:
    """What probing holds on an accelerator, in bytes.

    - `itemsize`: of a number in its type of products.
    """

    survey: Survey
    run: RunSize
    itemsize: int

    def states(self, hidden: int | float) -> int | float:
        """Return the bytes of the hidden states of every disturbed pass and of every block."""
        passes = self.survey.units + len(self.survey.blocks)
        return passes * SEQUENCES * min(LENGTH, self.run.length) * hidden * self.itemsize

    @property
    def logits(self) -> int | float:
        """The bytes of logits that are compared."""
        words = vocabulary(self.survey.model)
        return LOGITS * SEQUENCES * POSITIONS * words * self.itemsize

    @property
    def attention(self) -> int | float:
        """The bytes of attention of the tokens for the Hessians."""
        heads = self.survey.number("num_attention_heads", 1)
        return SCORES * heads * self.tokens * self.run.length * self.itemsize

    @property
    def tokens(self) -> int:
        """How many tokens the Hessians are of."""
        sequences = max(1, HESSIAN_TOKENS // self.run.length)
        return min(self.run.sequences, sequences) * self.run.length

    @property
    def expert_errors(self) -> int | float:
        """The bytes of the errors of all experts' layers of a block, and of one kind's weights."""
        of_block: dict[str, int] = {}
        for layer in self.survey.layers:
            if layer.name in self.survey.shares:
                name = layer.name.rsplit(".", 2)[0]
                of_block[name] = of_block.get(name, 0) + layer.weight().numel()
        return self.itemsize * max(of_block.values(), default=0) * 4 / 3
