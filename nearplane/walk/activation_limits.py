"""What a walk may keep in memory between one stage and the next."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nearplane.walk.hidden_states import Mapped, States


@dataclass(frozen=True)
class Room:
    """How much of a calibration's activations stays in memory; results do not depend on it.

    - `paused`: how many batches' runs of a block wait in memory from stage to stage, with all that
      they have computed; the others start anew for every stage. All wait if None.
    - `directory`: where hidden states go between blocks; they stay in memory if None.
    """

    paused: int | None = None
    directory: Path | None = None

    @property
    def states(self) -> Callable[[], States]:
        """Makes an empty list of hidden states."""
        return list if self.directory is None else partial(Mapped, self.directory)
