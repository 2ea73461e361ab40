"""Nothing here asks the network, and libraries say nothing of damaged files."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import logging
import shutil
import tracemalloc
from pathlib import Path

import pytest

from nearplane.cli.quiet import quiet
from tests.fuzz import directories


@pytest.fixture(autouse=True, scope="module")
def silence():
    quiet()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Return directories that are not to be altered, by what they are."""
    place = tmp_path_factory.mktemp("whole")
    return {
        "checkpoint": directories.written_checkpoint(place / "checkpoint", shards=False),
        "shards": directories.written_checkpoint(place / "shards", shards=True),
        "model": directories.written_model(place / "model", shards=False),
        "model in shards": directories.written_model(place / "in-shards", shards=True),
    }


@pytest.fixture
def copied(whole, tmp_path):
    """Return a function that copies one of the directories, to be broken."""
    return lambda name: Path(shutil.copytree(whole[name], tmp_path / "copy"))


@pytest.fixture
def peak_of():
    """Return a function that calls another and returns the most bytes that it held at once."""

    def peak(function, *words) -> int:
        tracemalloc.start()
        try:
            function(*words)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return peak
