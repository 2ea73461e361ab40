"""Integers of an accelerator, brought to the machine's memory, where codes are."""

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

NARROW = (torch.int8, torch.int16, torch.int32)


def on_host(integers: Int32[Tensor, "rows columns"]) -> Int32[np.ndarray, "rows columns"]:
    """Return the integers in the machine's memory; they are sent in the fewest bytes."""
    own = integers.detach()
    sent = own if own.device.type == "cpu" else narrowest(own)
    return sent.cpu().to(torch.int32).numpy()


def narrowest(tensor: Tensor) -> Tensor:
    """Return integers in the smallest signed type that holds them; anything else as it is."""
    if tensor.dtype not in (torch.int16, torch.int32, torch.int64) or not tensor.numel():
        return tensor
    low, high = torch.stack(tensor.aminmax()).tolist()
    for dtype in NARROW:
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return tensor.to(dtype)
    return tensor
