"""Choose how many calibration sequences a run uses, and read them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nearplane.model.open_model import open_tokenizer, tokenizer_problem
from nearplane.model.positions import check_positions
from nearplane.plan.estimate import estimate
from nearplane.plan.survey import Survey
from nearplane.types import NearplaneError
from nearplane.walk.calibration import (
    CalibrationRequest,
    Text,
    TokenAccount,
    calibrate,
    check_size,
    default_length,
    default_sequences,
)
from nearplane.walk.ranks import Ranks
from nearplane.walk.sources import Sources, as_sources


@dataclass(frozen=True)
class CalibrationSize:
    """How much calibration the user asks for: sequences of a length, or as many as fit a time.

    Raises NearplaneError if both a number of sequences and a time are given.
    """

    calibration: Text
    sequences: int | None
    length: int | None
    seconds: float | None
    device: str = "cpu"
    device_memory: int | None = None

    def __post_init__(self) -> None:
        check_one_given(self.sequences, self.seconds)

    def size(
        self,
        survey: Survey,
        ranks: Ranks,
        memory: int | None,
        earlier: dict[str, Any] | None,
        says: Callable[[str], None],
    ) -> tuple[int, int]:
        """Return the most sequences to use, and their length.

        - `memory`: bytes that a process may use; None is all available.
        - `earlier`: the calibration of the run that is resumed, used again if `seconds` is given.
        - `says`: called with a sentence on the number that fits in the time.
        """
        length = default_length(survey.model) if self.length is None else self.length
        most = None
        given = self.calibration
        if isinstance(given, torch.Tensor) and given.ndim == 2 and given.numel():
            most, length = given.shape
        check_size(1 if self.sequences is None else self.sequences, length)
        check_positions(survey.model, length, "--length")
        if self.seconds is not None and earlier:
            sequences, length = earlier["sequences"], earlier["length"]
        elif self.seconds is not None:
            sequences = self.fitting(survey, length, ranks, memory, says)
        elif self.sequences is None:
            sequences = most or default_sequences(survey.widest, length, ranks.size)
        else:
            sequences = self.sequences
        return sequences if most is None else min(sequences, most), length

    def fitting(
        self,
        survey: Survey,
        length: int,
        ranks: Ranks,
        memory: int | None,
        says: Callable[[str], None],
    ) -> int:
        """Return how many sequences fit in the time, as the first process estimates.

        Raises NearplaneError in all processes if one sequence for each takes longer.
        """
        assert self.seconds is not None
        answer = ""
        if ranks.first:
            try:
                where = self.device, memory, self.device_memory
                least = estimate(survey, ranks.size, length, ranks.size, *where)
                fit = least.within(self.seconds)
                says(fit.time_sentence(self.seconds))
                answer = str(fit.run.sequences)
            except NearplaneError as refusal:
                answer = str(refusal)
        answer = (ranks.bytes_of_first(answer.encode()) or b"").decode()
        if not answer.isdecimal():
            raise NearplaneError(answer)
        return int(answer)


def check_one_given(sequences: int | None, seconds: float | None) -> None:
    """Raise NearplaneError if both a number of sequences and a time are given."""
    if seconds is not None and sequences is not None:
        raise NearplaneError("give --time or --sequences, not both: each sets the calibration")


def calibrated(
    survey: Survey, text: Text, wanted: CalibrationRequest, says: Callable[[str], None]
) -> tuple[Any, torch.Tensor, TokenAccount]:
    """Return the model's tokenizer, a text's tokens and their account.

    Says the account, and warns of a short text. Raises NearplaneError if there is no tokenizer for
    a text.
    """
    tokenizer = open_tokenizer(survey.empty.where)
    problem = tokenizer_problem(survey.empty.where) if tokenizer is None else ""
    text = as_sources(text)
    if problem and isinstance(text, str | Path | Sources):
        raise NearplaneError(
            f"the tokenizer beside {survey.name} cannot be read: {problem}; a tokenizer.json there "
            "would be"
        )
    tokens, account = calibrate(text, tokenizer, wanted)
    says(f"calibration: {account.sentence()}")
    for remark in account.remarks:
        says(f"warning: {remark}")
    if account.begins:
        says(f"the first document begins: {json.dumps(account.begins, ensure_ascii=False)}")
    if account.sequences < wanted.sequences:
        says(
            f"warning: the text fills {account.sequences} of the {wanted.sequences} sequences "
            "to be used"
        )
    config: Any = survey.model.config
    bos = getattr(config, "bos_token_id", None)
    if bos is not None and account.opened_by is None and account.source != "token tensors":
        says(
            f"note: the model's configuration names a beginning-of-sequence token ({bos}), but its "
            "tokenizer opens no text with it; neither does the calibration"
        )
    return tokenizer, tokens, account
