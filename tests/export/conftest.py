"""One checkpoint a model family, written once for all tests of this folder."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from tests.export import tiny


@dataclass
class Case:
    """A checkpoint and the dense model that holds the same values."""

    path: Path
    dense: nn.Module


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Callable[[str], Case]:
    """Return family -> its checkpoint, not to be altered."""
    cases: dict[str, Case] = {}

    def case(family: str) -> Case:
        if family not in cases:
            path = tmp_path_factory.mktemp(family) / "out"
            cases[family] = Case(path, tiny.write(tiny.FAMILIES[family](), path))
        return cases[family]

    return case


@pytest.fixture
def altered(written, tmp_path) -> Path:
    """Return a copy of the Llama checkpoint that a test may break."""
    return Path(shutil.copytree(written("llama").path, tmp_path / "copy"))
