"""The tiny model and checkpoint of the command line's tests serve these, too."""

from tests.cli.conftest import checkpoint, model_dir, nearplane, text

__all__ = ["checkpoint", "model_dir", "nearplane", "text"]
