"""Which of transformers' classes opens a language model, with or without images and sound."""

from typing import Any

NAMES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def auto_class(config: Any) -> Any:
    """Return the first of these classes that has a model for a configuration.

    `AutoModelForCausalLM` if none has: its error says so.
    """
    import transformers

    classes = [getattr(transformers, name) for name in NAMES if hasattr(transformers, name)]
    brought = getattr(config, "auto_map", None) or {}
    for each in classes:
        if each.__name__ in brought or type(config) in each._model_mapping:
            return each
    return classes[0]
