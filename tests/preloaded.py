"""What the programs of tests import, once (`tests.forked`)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import torch
import torch.distributed.nn
from transformers import LlamaForCausalLM  # noqa: F401

import nearplane.cli  # noqa: F401
import nearplane.pipeline  # noqa: F401

torch.set_num_threads(1)
