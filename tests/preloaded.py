"""What the programs of tests import, once (`tests.forked`)."""

import gc
import os
import subprocess

from tests.forked import Forking

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it
subprocess.Popen = Forking  # before others import it

import torch  # noqa: E402
import torch.distributed.nn  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402, F401

import nearplane.cli  # noqa: E402, F401
import nearplane.pipeline  # noqa: E402, F401

torch.set_num_threads(1)
os.fsync = os.fstat  # as in conftest.py
# no program looks for garbage among them, and so their memory stays that of the server
gc.collect()
gc.freeze()
