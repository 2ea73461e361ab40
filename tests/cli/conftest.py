"""One tiny model, one text and one checkpoint of it for all tests of the command line."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from nearplane.cli.app import app
from tests.cli import tiny

# matrices this small lose more to threads that wait for each other than they gain
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nearplane() -> Callable[..., Result]:
    """Return a function that runs the command line in this process."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def checkpoint(nearplane, model_dir, text, tmp_path_factory) -> Path:
    """Return a checkpoint, not to be altered."""
    out = tmp_path_factory.mktemp("checkpoint") / "out"
    result = nearplane("quantize", model_dir, out, "--calibration", text, *tiny.SMALL)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def grouped(nearplane, model_dir, text, tmp_path_factory) -> Path:
    """Return a checkpoint that every format holds: integers of 4 bits, steps of 32 columns.

    Not to be altered.
    """
    out = tmp_path_factory.mktemp("grouped") / "out"
    words = ["--method", "rtn", "--bits", 4, "--group-size", 32, "--keep", "embedding"]
    words += tiny.SMALL[2:]
    done = nearplane("quantize", model_dir, out, "--calibration", text, *words)
    assert done.exit_code == 0, done.output
    return out
