"""What is shown of a run: a bar on a terminal, lines elsewhere."""

import io
import sys

import pytest

from nearplane.cli import progress
from nearplane.types import LayerReport

NUMBERS = ("stored_bytes", "bpw", "code_bpw", "loss", "damped_loss", "energy", "weight_error")
COUNTS = ("rows", "columns", "tokens", "dropped_tokens", "dead_columns")


def report(name: str) -> LayerReport:
    zeros = dict.fromkeys(NUMBERS, 1.0) | dict.fromkeys(COUNTS, 8)
    return LayerReport(name, "hptq", bound=None, void="", seconds=0.1, **zeros)


class Screen(io.StringIO):
    """A stream that says that it is a terminal, or not."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_is_shown_from_beginning_to_end(terminal, monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal))
    monkeypatch.setenv("TERM", "xterm")
    with progress.watching() as watcher:
        watcher.says("calibration: 4 sequences")
        for share in (0.1, 0.6, 1.0):
            watcher.progress("probing the layers", share)
        for number in range(3):
            watcher.done(report(f"model.layers.{number}.q_proj"), 3)
        watcher.progress("evaluating", 0.5)
    shown = screen.getvalue()
    assert "calibration: 4 sequences" in shown
    # a bar is drawn ten times a second, and shows what it then stands at
    assert "evaluating" in shown
    assert terminal or ("q_proj" in shown and "probing the layers" in shown)
    assert ("\x1b[" in shown) == terminal
