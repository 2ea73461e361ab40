"""The parts of what a process, or a device, holds at its peak."""

from dataclasses import dataclass

BASE_BYTES = 0.75e9  # Python, torch, transformers, and freed blocks that the allocator keeps


@dataclass(frozen=True)
class Memory:
    """The parts of one process's memory at its peak, bytes.

    - `weights`: those of the model that are in memory. `states`: hidden states of its share of the
      calibration, and activations of forward passes that are paused inside a block.
    - `working`: to sum, factor and round the layers that need most. `base`: Python and libraries.
    """

    weights: int | float
    states: int | float
    working: int | float
    base: int | float = BASE_BYTES

    @property
    def total(self) -> int | float:
        return self.weights + self.states + self.working + self.base

    def sentence(self) -> str:
        """Return the parts in gigabytes."""
        parts = ("weights", "states", "working", "base")
        return ", ".join(f"{part} {getattr(self, part) / 1e9:.2f} GB" for part in parts)
