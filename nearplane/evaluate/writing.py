"""Text that a model writes, printed word by word."""

from typing import Any

from transformers import GenerationConfig, TextStreamer

from nearplane.types import NearplaneError, naming_errors


class Words(TextStreamer):
    """Prints every word as soon as its last token is known, and keeps the text.

    - `count`: how many tokens were written. `text`: what was printed.
    """

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.count, self.text = -1, ""  # the prompt comes first

    def put(self, value: Any) -> None:
        """Take the tokens of the prompt, then one at a time."""
        self.count += 1
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what no later token changes."""
        self.text += text
        super().on_finalized_text(text, stream_end)


def ends(model: Any, tokenizer: Any) -> list[int] | None:
    """Return the tokens that end a text: the tokenizer's, and those of generation_config.json."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return sorted(found) or None


def written(model: Any, tokenizer: Any, inputs: Any, tokens: int, words: Words) -> None:
    """Generate greedily, at most so many tokens, through `words`."""
    if not inputs["input_ids"].shape[1]:
        raise NearplaneError("the prompt is empty, and this model needs a token to begin with")
    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ends(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    arguments = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    with naming_errors(f"writing with {type(model).__name__}"):
        model.generate(**arguments, generation_config=config, streamer=words)
