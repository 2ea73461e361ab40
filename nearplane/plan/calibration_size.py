"""How many calibration sequences a run uses: as asked, by default, or as many as fit a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nearplane.plan.estimate import estimate
from nearplane.plan.survey import Survey
from nearplane.types import NearplaneError
from nearplane.walk.calibration import Text, check_size, default_length, default_sequences
from nearplane.walk.ranks import Ranks


@dataclass(frozen=True)
class CalibrationSize:
    """How much calibration the user asks for: sequences of a length, or as many as fit a time.

    Raises NearplaneError if both a number of sequences and a time are given.
    """

    calibration: Text
    sequences: int | None
    length: int | None
    seconds: float | None

    def __post_init__(self) -> None:
        if self.seconds is not None and self.sequences is not None:
            raise NearplaneError("give --time or --sequences, not both: each sets the calibration")

    def size(
        self,
        found: Survey,
        ranks: Ranks,
        memory: int | None,
        earlier: dict[str, Any] | None,
        says: Callable[[str], None],
    ) -> tuple[int, int]:
        """Return how many sequences there are to be at most, and their length.

        - `earlier`: the calibration of the run that is resumed, whose time may have been given.
        """
        length = default_length(found.model) if self.length is None else self.length
        most = None
        given = self.calibration
        if isinstance(given, torch.Tensor) and given.ndim == 2 and given.numel():
            most, length = given.shape
        check_size(1 if self.sequences is None else self.sequences, length)
        if self.seconds is not None and earlier:
            sequences, length = earlier["sequences"], earlier["length"]
        elif self.seconds is not None:
            sequences = self.fitting(found, length, ranks, memory, says)
        elif self.sequences is None:
            sequences = most or default_sequences(found.widest, length, ranks.size)
        else:
            sequences = self.sequences
        return sequences if most is None else min(sequences, most), length

    def fitting(
        self,
        found: Survey,
        length: int,
        ranks: Ranks,
        memory: int | None,
        says: Callable[[str], None],
    ) -> int:
        """Return as many sequences as the first process finds to fit in the time.

        NearplaneError in all of them where it finds none.
        """
        assert self.seconds is not None
        answer = ""
        if ranks.first:
            try:
                whole = estimate(found, ranks.size, length, ranks.size, allowed=memory)
                run = whole.within(self.seconds)
                says(run.time_sentence(self.seconds))
                answer = str(run.run.sequences)
            except NearplaneError as refusal:
                answer = str(refusal)
        answer = (ranks.bytes_of_first(answer.encode()) or b"").decode()
        if not answer.isdecimal():
            raise NearplaneError(answer)
        return int(answer)
