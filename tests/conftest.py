"""Settings of all tests."""

import torch

# tests run beside each other, and threads of small matrices wait for each other more than they work
torch.set_num_threads(1)
