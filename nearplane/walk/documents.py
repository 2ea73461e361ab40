"""Reading documents: .txt, .jsonl, .parquet, a list of strings or a `datasets` name."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nearplane.types import NearplaneError, first_line

COLUMNS = ("text", "content", "messages", "conversations", "prompt")  # tried in this order
SHOWN_NAMES, SHOWN_NAME = 8, 40  # names of fields in an error message, and characters of each


def read_documents(text: str | Path | list[str], chat: Any = None) -> tuple[str, Iterable[str]]:
    """Return the name of a source and its documents as strings.

    - `chat`: a tokenizer whose chat template every document goes through, or None.

    Raises NearplaneError when the source cannot be read.
    """
    if isinstance(text, list):
        return f"{len(text)} strings", (as_text(t, chat) for t in text)
    path = Path(text)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:  # for example, the name is too long
        said = f"the calibration file {str(text)[:40]!r}... cannot be opened: {error.strerror}"
        raise NearplaneError(f"{said}; text itself is given as a list of strings") from error
    if is_directory:
        raise NearplaneError(f"the calibration text {path} is a directory: name a file in it")
    if not exists:
        return str(text), (as_text(r, chat) for r in read_dataset(str(text)))
    readers = {".jsonl": read_jsonl, ".json": read_jsonl, ".parquet": read_parquet}
    read = readers.get(path.suffix, read_text)
    return str(text), (as_text(r, chat) for r in read(path))


def as_text(record: Any, chat: Any) -> str:
    """Return the string of a record: itself, its text column, or its messages in the template."""
    if isinstance(record, dict):
        column = next((c for c in COLUMNS if c in record), None)
        if column is None:
            raise NearplaneError(
                f"a calibration record has none of the fields {', '.join(COLUMNS)}: "
                f"it has {_named(record) or 'no fields'}"
            )
        record = record[column]
    if not isinstance(record, str | list):
        raise NearplaneError(f"a calibration record is {type(record).__name__}, not text")
    if isinstance(record, list) and not all(isinstance(m, dict) and "content" in m for m in record):
        raise NearplaneError("a calibration record is a list, but not of messages with a content")
    if chat is None:
        plain = record if isinstance(record, str) else "\n".join(str(m["content"]) for m in record)
        return _encodable(plain)
    messages = [{"role": "user", "content": record}] if isinstance(record, str) else record
    if not getattr(chat, "chat_template", None):
        raise NearplaneError(
            "this model's tokenizer has no chat template: leave --chat-template out"
        )
    return _encodable(_templated(messages, chat))


def _named(record: dict[str, Any]) -> str:
    """Return the first names of a record's fields, as they can be printed."""
    names = [str(name)[:SHOWN_NAME] for name in list(record)[:SHOWN_NAMES]]
    return ", ".join(name if name.isprintable() and name else repr(name) for name in names)


def _templated(messages: list[dict[str, Any]], chat: Any) -> str:
    try:
        text = chat.apply_chat_template(messages, tokenize=False)
    # a template is a program that comes with the model, and may fail in any way
    except Exception as error:
        said = first_line(error)
        raise NearplaneError(f"the chat template refuses a calibration record: {said}") from error
    return text


def _encodable(text: str) -> str:
    """Return the text; NearplaneError if it holds lone surrogates, which JSON may escape."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        said = f"half of a character at {error.start}"
        raise NearplaneError(f"a calibration record is not text: {said}") from error
    return text


def read_text(path: Path) -> Iterator[str]:
    """Yield the file as one document."""
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NearplaneError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise NearplaneError(f"{path} cannot be read: {error.strerror}") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield one record a line."""
    # splitlines would also cut at characters that JSON allows inside a string
    for number, line in enumerate("".join(read_text(path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        # RecursionError: many nested brackets
        except (ValueError, RecursionError) as error:
            said = first_line(error)
            raise NearplaneError(f"line {number} of {path} is not JSON: {said}") from error


def read_parquet(path: Path) -> Iterator[Any]:
    """Yield one record a row; needs pyarrow."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise NearplaneError(
            "reading parquet needs pyarrow: pip install nearplane[data]"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
    # the last three: times, texts and numbers that Python cannot represent
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        said = first_line(error)
        raise NearplaneError(f"{path} is not a readable parquet file: {said}") from error


def read_dataset(name: str) -> Iterator[Any]:
    """Yield the records of a `datasets` name, NAME[:CONFIG][:SPLIT]; the default split is train."""
    parts = name.split(":")
    hub_name, config = parts[0], parts[1] if len(parts) == 3 else None
    missing = NearplaneError(f"there is no file {name}, and no data set of that name can be loaded")
    if name.endswith((".txt", ".json", ".jsonl", ".parquet")):
        raise NearplaneError(f"the calibration file {name} does not exist")
    try:
        import datasets
        import datasets.exceptions
    except ImportError as error:
        raise NearplaneError(f"{missing}: pip install nearplane[data] to load data sets") from error
    try:
        split = parts[-1] if len(parts) > 1 else "train"
        yield from datasets.load_dataset(hub_name, config, split=split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NearplaneError(f"{missing}: {reason}") from error
