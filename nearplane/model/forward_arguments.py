"""What a language model is called with: tokens, and no cache where it knows of one."""

import inspect
from typing import Any

from torch import Tensor


def forward_arguments(model: Any, tokens: Tensor) -> dict[str, Any]:
    """Return the arguments of a forward pass on some tokens, without a cache."""
    parameters = inspect.signature(model.forward).parameters
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    cache = {"use_cache": False} if takes_more or "use_cache" in parameters else {}
    return {"input_ids": tokens} | cache


def first_input(args: tuple, kwargs: dict[str, Any] | None) -> Any:
    """Return the first argument of a layer's call, by position or by name."""
    return args[0] if args else next(iter((kwargs or {}).values()), None)


def logits_of(result: Any) -> Any:
    """Return the logits in what a model returns: its `logits`, or its first tensor."""
    if isinstance(result, Tensor):
        return result
    logits = getattr(result, "logits", None)
    if logits is not None:
        return logits
    parts = result.values() if hasattr(result, "values") else result
    return next(part for part in parts if isinstance(part, Tensor))
