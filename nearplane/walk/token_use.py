"""How much each token of a vocabulary is used, and the steps of an embedding's rows by that.

An error in the row of a token matters where the token is read, and where it is a likely answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from nearplane import codes
from nearplane.codes.ladder import ROW_WIDTH
from nearplane.lattice.float64 import widened
from nearplane.model.blocks import Layer
from nearplane.model.forward_arguments import logits_of
from nearplane.model.selection import is_embedding
from nearplane.walk.forward_pass import ForwardPass
from nearplane.walk.ranks import ALONE, Ranks

EXPONENT = -1 / 4  # of use, in a row's step
FLOOR = 0.1  # added to every token's use, in units of the mean token's
FIRST_RANK = 300  # tokens before which the prior is about the same for all: bytes, special ones
MOST_LOGITS = 1 << 26  # of one batch that are looked at


# the types of these three name no sizes: what checks them does not follow a pass that pauses
def steps_by_use(
    layer: Layer,
    tokens: Tensor,
    passes: Sequence[ForwardPass] = (),
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the factors (rows, 1) of the rows' steps of an embedding, an output head, or both.

    - `passes`: of the model, paused at the head; none for an embedding that is not the head, too.
    """
    rows, parts = layer.shape[0], [prior(layer.shape[0])]
    if is_embedding(layer):
        parts.append(read(tokens, rows))
    if passes:
        parts.append(answered(passes, rows, ranks))
    return row_steps(*parts)


def row_steps(*parts: Float[Tensor, " tokens"]) -> Float32[Tensor, "tokens 1"]:
    """Return the factors of the rows' steps: (use + FLOOR)^EXPONENT, as a record can hold them.

    A token's use is the sum of `parts`, its shares of what is read, of what is answered and of the
    prior, each in units of the mean token's. Losses in proportion to it would ask for an exponent
    of −½; a text that is unlike the calibration, for less than that.

    - `parts`: each adds up to 1.
    """
    use = torch.stack([part * len(part) for part in parts]).sum(0) + FLOOR
    return codes.ladder_steps(use**EXPONENT, ROW_WIDTH)[:, None]


def prior(tokens: int) -> Float[Tensor, " tokens"]:
    """Return how much tokens are used in texts of any kind, by their rank: ∝ 1 / (i + FIRST_RANK).

    Vocabularies list tokens in the order in which they were merged, the most frequent ones first;
    the frequency of words falls with their rank [Zipf49].
    """
    rank = torch.arange(tokens, dtype=torch.float64)
    share = 1 / (rank + FIRST_RANK)
    return share / share.sum()


def read(tokens: Int64[Tensor, "n length"], vocabulary: int) -> Float[Tensor, " tokens"]:
    """Return each token's share of a text."""
    counts = torch.bincount(tokens.flatten().cpu(), minlength=vocabulary)[:vocabulary].double()
    return counts / counts.sum().clamp_min(1)


def answered(passes: Sequence[ForwardPass], vocabulary: int, ranks: Ranks = ALONE) -> Tensor:
    """Return each token's mean probability as the next one; all passes are paused at the head.

    They are run to their end, for some of their positions, evenly spaced.
    """
    total = torch.zeros(vocabulary, dtype=torch.float64)
    for each in passes:
        found = probabilities(each, vocabulary)[:, :vocabulary]
        total[: found.shape[1]] += widened(found).sum(0).nan_to_num_(0).cpu()
    ranks.sum_(total)
    return total / total.sum().clamp_min(1)


def probabilities(each: ForwardPass, vocabulary: int) -> Tensor:
    """Return the predictions (positions, tokens) of a pass that is paused at the head."""
    each.finish(vocabulary, MOST_LOGITS)
    logits = logits_of(each.result).flatten(0, -2)
    each.result = None
    return torch.softmax(logits[:: max(1, len(logits) * vocabulary // MOST_LOGITS)].float(), -1)
