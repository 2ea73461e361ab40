"""Reading documents: .txt, .jsonl, .parquet, a list of strings or a `datasets` name."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nearplane.types import NearplaneError, first_line
from nearplane.walk.records import is_message, texts_of

Record = tuple[str, Any]  # what names a record in an error, and the record


def read_documents(text: str | Path | list[str], chat: Any = None) -> tuple[str, Iterable[str]]:
    """Return the name of a source and its documents as strings.

    - `chat`: a tokenizer whose chat template every document goes through, or None.

    Raises NearplaneError when the source cannot be read, or a record of it holds no text.
    """
    if isinstance(text, list):
        strings = ((f"string {number}", entry) for number, entry in enumerate(text, 1))
        return f"{len(text)} strings", documents_of(strings, chat)
    path = Path(text)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:  # for example, the name is too long
        said = f"the calibration file {str(text)[:40]!r}... cannot be opened: {error.strerror}"
        raise NearplaneError(f"{said}; text itself is given as a list of strings") from error
    if is_directory:
        raise NearplaneError(f"the calibration text {path} is a directory: name a file in it")
    if not exists:
        return str(text), documents_of(read_dataset(str(text)), chat)
    readers = {".jsonl": read_jsonl, ".json": read_json, ".parquet": read_parquet}
    if path.suffix in readers:
        return str(text), documents_of(readers[path.suffix](path), chat)
    return str(text), documents_of(((str(path), whole) for whole in read_text(path)), chat)


def documents_of(records: Iterable[Record], chat: Any) -> Iterator[str]:
    """Yield the text of every record."""
    for where, record in records:
        yield from texts_of(record, where, chat)


def read_text(path: Path) -> Iterator[str]:
    """Yield the file as one document, without a byte order mark."""
    try:
        yield path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise NearplaneError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise NearplaneError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Iterator[Record]:
    """Yield the entries of a JSON array, or the one record of a file; else one record a line."""
    whole = "".join(read_text(path))
    try:
        record = json.loads(whole)
    # RecursionError: many nested brackets
    except (ValueError, RecursionError):
        yield from records_by_line(path, whole)
        return
    if isinstance(record, list) and not any(map(is_message, record)):
        yield from ((f"entry {number} of {path}", r) for number, r in enumerate(record, 1))
    else:
        yield str(path), record


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield one record a line; the entries of a JSON array that has several lines."""
    whole = "".join(read_text(path))
    first = next((line for line in whole.split("\n") if line.strip()), "")
    if first.strip() == "[":
        yield from read_json(path)
    else:
        yield from records_by_line(path, whole)


def records_by_line(path: Path, whole: str) -> Iterator[Record]:
    """Yield one record a line; NearplaneError names a line that is not JSON."""
    # splitlines would also cut at characters that JSON allows inside a string
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NearplaneError(f"{where} is not JSON: {first_line(error)}") from error
        yield where, record


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield one record a row; needs pyarrow."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise NearplaneError(
            "reading parquet needs pyarrow: pip install nearplane[data]"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
        yield from ((f"row {number} of {path}", row) for number, row in enumerate(rows, 1))
    # the last three: times, texts and numbers that Python cannot represent
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        said = first_line(error)
        raise NearplaneError(f"{path} is not a readable parquet file: {said}") from error


def read_dataset(name: str) -> Iterator[Record]:
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
        records = datasets.load_dataset(hub_name, config, split=split, streaming=True)
        yield from ((f"record {number} of {name}", r) for number, r in enumerate(records, 1))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise NearplaneError(f"{missing}: {first_line(error)}") from error
