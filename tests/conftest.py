"""Settings of all tests."""

import torch
from hypothesis import settings

from nearplane import arithmetic

# tests run beside each other, and threads of small matrices wait for each other more than they work
torch.set_num_threads(1)
# a busy machine is not a fault
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
# results must not depend on the processor that tests run on: all are taken to be fast at all types,
# and tests/test_arithmetic.py takes them to be slow
arithmetic.slowdown = lambda dtype: 1.0
