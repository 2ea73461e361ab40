"""The time of a whole model's output token on a GPU: serves bench/gpu.py."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from random_model import random_model
from records import Kind
from transformers import StaticCache

CONTEXT = 64  # tokens that the cache holds


class Decoder:
    """A model that is given one token after another; on a GPU from a CUDA graph, if it can be."""

    def __init__(self, config: dict, kind: Kind | None, device: str):
        self.model: Any = random_model(config, kind, False, device)
        self.cache = StaticCache(config=self.model.config, max_cache_len=CONTEXT)
        self.token = torch.ones(1, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.how, self.step = "eager", self.eager
        if device == "cuda":
            self._capture()

    @torch.inference_mode()
    def eager(self) -> None:
        self.model(input_ids=self.token, past_key_values=self.cache, cache_position=self.place)

    def _capture(self) -> None:
        for _ in range(3):
            self.eager()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.eager()
        except RuntimeError as error:
            # a model that a graph cannot hold is timed as it is, and the table says so
            self.how = f"eager: {str(error).splitlines()[0]}"
        else:
            self.how, self.step = "CUDA graph", graph.replay

    def seconds(self, tokens: int, wait: Callable[[], None]) -> float:
        """Return the median seconds of a token."""
        found = []
        for _ in range(tokens):
            wait()
            started = time.perf_counter()
            self.step()
            wait()
            found.append(time.perf_counter() - started)
        return statistics.median(found)
