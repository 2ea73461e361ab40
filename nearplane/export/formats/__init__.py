"""Formats that a checkpoint can be written in for other programs.

In comes the directory of a checkpoint, out go files that the other program reads. A format is one
file here with a class that derives from `Format`, and one import line below; `nearplane export
--to NAME` and `nearplane formats` find it, and tests/export/test_formats.py tries it.
"""

from nearplane.export.formats.compressed_tensors import CompressedTensors
from nearplane.export.formats.format import FORMATS, Format, export
from nearplane.export.formats.gguf import Gguf
from nearplane.export.formats.gptq import Gptq, GptqV2
from nearplane.export.formats.uncompressed import Uncompressed

__all__ = [
    "FORMATS",
    "CompressedTensors",
    "Format",
    "Gguf",
    "Gptq",
    "GptqV2",
    "Uncompressed",
    "export",
]
