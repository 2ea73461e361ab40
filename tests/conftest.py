"""Settings of all tests."""

import torch
from hypothesis import settings

# tests run beside each other, and threads of small matrices wait for each other more than they work
torch.set_num_threads(1)
# a busy machine is not a fault
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
