"""A record of a data set -> text: of a field, a conversation, or a question with its answer."""

import json
from collections.abc import Iterator
from typing import Any

from nearplane.types import NearplaneError, first_line

TEXT_FIELDS = ("text", "content")
CHAT_FIELDS = ("messages", "conversations", "conversation")
# fields with a question, what it is about, and its answer, as instruction data have them
ANSWERED = (
    ("instruction", "input", "output"),
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("question", "context", "answer"),
)
# who speaks, as data sets in the format of ShareGPT say it
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
CALLS = ("tool_calls", "function_call")
SHOWN_NAMES, SHOWN_NAME = 8, 40  # names of fields in an error message, and characters of each

Messages = list[dict[str, Any]]


def texts_of(record: Any, where: str, chat: Any = None) -> Iterator[str]:
    """Yield the text of a record; of a list that is no conversation, of each of its entries.

    - `where`: names the record in an error, as "line 3 of notes.jsonl".
    - `chat`: a tokenizer whose chat template every record goes through, or None.

    Raises NearplaneError, naming the record and what was expected, for what holds no text.
    """
    if isinstance(record, list) and record and not any(map(is_message, record)):
        if not all(isinstance(entry, str | dict) for entry in record):
            raise NearplaneError(f"{where} is a list, but neither of records nor of messages")
        for number, entry in enumerate(record, 1):
            yield text_of(entry, f"entry {number} of {where}", chat)
    else:
        yield text_of(record, where, chat)


def text_of(record: Any, where: str, chat: Any) -> str:
    """Return the text of one record."""
    held = record if isinstance(record, str) else contents_of(record, where)
    if chat is None:
        plain = held if isinstance(held, str) else "\n".join(filter(None, map(plain_text, held)))
        return encodable(plain, where)
    messages = [{"role": "user", "content": held}] if isinstance(held, str) else held
    tools = record.get("tools") if isinstance(record, dict) else None
    if not getattr(chat, "chat_template", None):
        raise NearplaneError(
            "this model's tokenizer has no chat template: leave --chat-template out"
        )
    return encodable(templated(messages, where, chat, tools), where)


def contents_of(record: Any, where: str) -> str | Messages:
    """Return what a record holds: a text, or messages with a role and a content each."""
    if isinstance(record, list):
        return messages_of(record, where)
    if not isinstance(record, dict):
        kind = "null" if record is None else type(record).__name__
        raise NearplaneError(f"{where} is {kind}, not text")
    answered = next(
        (names for names in ANSWERED if names[0] in record and names[2] in record), None
    )
    field = next((name for name in (*TEXT_FIELDS, *CHAT_FIELDS) if name in record), None)
    if field is None and answered is not None:
        return answer_of(record, answered, where)
    if field is None and "prompt" in record:
        field = "prompt"
    if field is None:
        known = ", ".join((*TEXT_FIELDS, *CHAT_FIELDS, "prompt"))
        raise NearplaneError(
            f"{where} has none of the fields {known}: it has {named(record) or 'no fields'}"
        )
    found = record[field]
    if field in CHAT_FIELDS and isinstance(found, str):
        found = parsed(found)
    if isinstance(found, list):
        return [*system_of(record), *messages_of(found, f"{field} in {where}")]
    return checked_text(found, field, where)


def parsed(text: str) -> Any:
    """Return the conversation that a text holds as JSON, or the text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) else text


def system_of(record: dict[str, Any]) -> Messages:
    """Return the system's message that a record has in a field of its own, in a list."""
    said = record.get("system")
    return [{"role": "system", "content": said}] if isinstance(said, str) and said else []


def answer_of(record: dict[str, Any], names: tuple[str, str, str], where: str) -> Messages:
    """Return a question, with what it is about, and its answer as messages."""
    question, about, answer = names
    if isinstance(record[question], list) and isinstance(record[answer], list):
        parts = ((record[name], f"{name} in {where}") for name in (question, answer))
        return [message for part, here in parts for message in messages_of(part, here)]
    asked = [checked_text(record[question], question, where)]
    if record.get(about):
        asked.append(checked_text(record[about], about, where))
    answered = checked_text(record[answer], answer, where)
    return [
        *system_of(record),
        {"role": "user", "content": "\n\n".join(asked)},
        {"role": "assistant", "content": answered},
    ]


def checked_text(found: Any, field: str, where: str) -> str:
    """Return a field's text; NearplaneError if it holds something else."""
    if not isinstance(found, str):
        kind = "null" if found is None else type(found).__name__
        raise NearplaneError(f"{where}: the field {field} is {kind}, not text or messages")
    return found


def is_message(entry: Any) -> bool:
    """Whether an entry of a list says who speaks."""
    return isinstance(entry, dict) and ("role" in entry or "from" in entry)


def messages_of(entries: list[Any], where: str) -> Messages:
    """Return a conversation with `role` and `content`, which is text, in every message."""
    found = []
    for number, entry in enumerate(entries, 1):
        here = f"message {number} of {where}"
        if not isinstance(entry, dict) or not {"content", "value", *CALLS} & entry.keys():
            raise NearplaneError(f"{here} is no message with a role and a content")
        # tables give every column to every message, with null where it has none
        role = first_given(entry, "role", "from")
        role = "user" if role is None else role
        content = first_given(entry, "content", "value")
        content = joined_parts(content, here, entry)
        if not isinstance(role, str):
            raise NearplaneError(f"{here} has a role that is no text: {role!r}")
        speaker = SPEAKERS.get(role, role)
        others = {k: v for k, v in entry.items() if k not in ("from", "value")}
        found.append(others | {"role": speaker, "content": content})
    return found


def first_given(entry: dict[str, Any], *names: str) -> Any:
    """Return the first of some fields that is there and not null; None if there is none."""
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def joined_parts(content: Any, where: str, message: dict[str, Any]) -> str:
    """Return a message's text: of typed parts, that of those with text; "" beside tool calls."""
    if isinstance(content, str):
        return content
    if content is None and any(message.get(name) for name in CALLS):
        return ""
    if isinstance(content, list) and all(isinstance(part, str | dict) for part in content):
        texts = [part if isinstance(part, str) else part.get("text") or "" for part in content]
        if all(isinstance(text, str) for text in texts) and any(texts):
            return "".join(texts)
    kind = "null" if content is None else type(content).__name__
    raise NearplaneError(f"{where} has a content that is {kind} and holds no text")


def plain_text(message: dict[str, Any]) -> str:
    """Return what a message says without a template; tool calls as JSON."""
    calls = first_given(message, *CALLS)
    thought = message.get("reasoning_content")
    said = [part for part in (thought, message["content"]) if isinstance(part, str) and part]
    return "\n".join([*said, json.dumps(calls, ensure_ascii=False)] if calls else said)


def named(record: dict[str, Any]) -> str:
    """Return the first names of a record's fields, as they can be printed."""
    names = [str(name)[:SHOWN_NAME] for name in list(record)[:SHOWN_NAMES]]
    return ", ".join(name if name.isprintable() and name else repr(name) for name in names)


def templated(messages: Messages, where: str, chat: Any, tools: Any = None) -> str:
    """Return the messages in the tokenizer's chat template, with the tools that they may call."""
    given = parsed(tools) if isinstance(tools, str) else tools
    options = {"tools": given} if isinstance(given, list) and given else {}
    try:
        return chat.apply_chat_template(messages, tokenize=False, **options)
    # a template is a program that comes with the model, and may fail in any way
    except Exception as error:
        said = first_line(error)
        raise NearplaneError(f"the chat template refuses {where}: {said}") from error


def encodable(text: str, where: str) -> str:
    """Return the text; NearplaneError if it holds lone surrogates, which JSON may escape."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        said = f"half of a character at {error.start}"
        raise NearplaneError(f"{where} is not text: {said}") from error
    return text
