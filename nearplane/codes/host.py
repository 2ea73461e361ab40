"""Integers of an accelerator, brought to the machine's memory, where codes are."""

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

NARROW = (torch.int8, torch.int16)


def on_host(integers: Int32[Tensor, "rows columns"]) -> Int32[np.ndarray, "rows columns"]:
    """Return the integers in the machine's memory; they are sent in the fewest bytes."""
    sent = integers.detach()
    if sent.device.type != "cpu" and sent.numel():
        low, high = torch.stack(sent.aminmax()).tolist()
        fits = [t for t in NARROW if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max]
        sent = sent.to(fits[0]) if fits else sent
    return sent.cpu().to(torch.int32).numpy()
