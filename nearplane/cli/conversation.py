"""A conversation with a model in the terminal: answers as they come, tokens a second, Ctrl-C."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import typer

from nearplane.types import NearplaneError

HELP = "/new begins another conversation, /exit ends; Ctrl-C ends an answer"


@dataclass
class Conversation:
    """What was said so far, and the model that answers; it reads all of it again for each answer.

    - `tokens`: of an answer, at most.
    """

    model: Any
    tokenizer: Any
    tokens: int
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise NearplaneError(
                "this model's tokenizer has no chat template to have a conversation in: give a "
                "PROMPT to continue"
            )

    def run(self) -> None:
        """Answer line by line until there are no more."""
        typer.echo(HELP)
        while (line := next_line()) is not None and line != "/exit":
            if line == "/new":
                self.messages = []
            elif line:
                self.answer(line)

    def answer(self, line: str) -> None:
        """Answer one line; one that there is no room for is said and forgotten."""
        from nearplane.evaluate.writing import Words, written
        from nearplane.model.positions import position_limit

        self.messages.append({"role": "user", "content": line})
        inputs = self.tokenizer.apply_chat_template(
            self.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        count, limit = inputs["input_ids"].shape[1], position_limit(self.model)
        if limit is not None and count + self.tokens > limit:
            self.messages.pop()
            typer.echo(f"[no room in {limit} positions: /new, a shorter line or fewer --tokens]")
            return
        words, began = Words(self.tokenizer), time.perf_counter()
        try:
            written(self.model, self.tokenizer, inputs, self.tokens, words)
        except KeyboardInterrupt:
            words.end()
        seconds = time.perf_counter() - began
        typer.echo(f"[{words.count} tokens, {words.count / seconds:.1f} a second]")
        self.messages.append({"role": "assistant", "content": words.text})


def next_line() -> str | None:
    """Return the next line of the terminal or of a pipe, None at the end or after Ctrl-C."""
    typer.echo("> ", nl=False)
    sys.stdout.flush()
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = ""
    if not line:
        typer.echo()
        return None
    return line.strip()
