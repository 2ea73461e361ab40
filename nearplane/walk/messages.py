"""Tensors <-> the bytes that processes send each other, integers in the narrowest type."""

import json
from math import prod

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearplane.codes.host import narrowest
from nearplane.model.compute_dtype import name_of

WORD = 8  # every part begins at a multiple of it, so that it can be read in place


def to_message(tensors: tuple[Tensor, ...]) -> UInt8[Tensor, " bytes"]:
    """Return the bytes from which `from_message` restores the tensors, bit by bit."""
    sent = [narrowest(tensor).contiguous() for tensor in tensors]
    forms = [
        (name(tensor), name(small), list(tensor.shape), tensor.device.type)
        for tensor, small in zip(tensors, sent, strict=True)
    ]
    head = json.dumps(forms).encode()
    parts = [
        torch.tensor([len(head)], device="cpu"),
        torch.frombuffer(bytearray(head), dtype=torch.uint8),
        *sent,
    ]
    sizes = [padded(part.nbytes) for part in parts]
    whole = torch.zeros(sum(sizes), dtype=torch.uint8, device="cpu")
    for part, place in zip(parts, whole.split(sizes), strict=True):
        place[: part.nbytes].view(part.dtype).copy_(part.view(-1))
    return whole


def from_message(message: UInt8[Tensor, " bytes"]) -> tuple[Tensor, ...]:
    """Return the tensors that `to_message` was given."""
    length = int(message[:WORD].view(torch.int64))
    forms = json.loads(message[WORD : WORD + length].numpy().tobytes())
    at, tensors = WORD + padded(length), []
    for meant, sent, shape, device in forms:
        dtype = getattr(torch, sent)
        size = prod(shape) * dtype.itemsize
        part = message[at : at + size].view(dtype).view(shape)
        tensors.append(part.to(device, getattr(torch, meant)))
        at += padded(size)
    return tuple(tensors)


def name(tensor: Tensor) -> str:
    """Return the name of a tensor's type."""
    return name_of(tensor.dtype)


def padded(size: int) -> int:
    """Return a size rounded up to whole words."""
    return -(-size // WORD) * WORD
