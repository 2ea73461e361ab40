"""Reading documents: text, JSON, parquet, compressed or not, a directory, or a `datasets` name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nearplane.types import NearplaneError, first_line
from nearplane.walk.records import is_message, texts_of

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
TEXTS = (".txt", ".md")  # a file is one document
SHOWN_FILES = 5  # names of files in a sentence

Record = tuple[str, Any]  # what names a record in an error, and the record


class Source(NamedTuple):
    """Documents, the name of what they come from, and a remark on what was not read; or ""."""

    name: str
    documents: Iterable[str]
    remark: str = ""


def read_documents(text: str | Path | list[str], chat: Any = None) -> Source:
    """Return the documents of a file, a directory, a data set or a list of strings.

    - `chat`: a tokenizer whose chat template every document goes through, or None.

    Raises NearplaneError when the source cannot be read, or a record of it holds no text.
    """
    if isinstance(text, list):
        strings = ((f"string {number}", entry) for number, entry in enumerate(text, 1))
        return Source(f"{len(text)} strings", documents_of(strings, chat))
    path = Path(text)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:  # for example, the name is too long
        said = f"the calibration file {str(text)[:40]!r}... cannot be opened: {error.strerror}"
        raise NearplaneError(f"{said}; text itself is given as a list of strings") from error
    if is_directory:
        return read_directory(path, chat)
    records = read_file(path) if exists else read_dataset(str(text))
    return Source(str(text), documents_of(records, chat))


def read_directory(path: Path, chat: Any) -> Source:
    """Return the documents of all files in a directory and its folders, in the order of names.

    Raises NearplaneError if no file's name ends as that of a file of text does.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    readable = [file for file in files if kind_of(file) in (*READERS, *TEXTS)]
    if not readable:
        known = ", ".join((*TEXTS, *READERS))
        raise NearplaneError(f"the directory {path} holds no file that ends in {known}")
    others = [str(file.relative_to(path)) for file in files if file not in readable]
    more = f" and {len(others) - SHOWN_FILES} more" if len(others) > SHOWN_FILES else ""
    remark = f"not read: {', '.join(others[:SHOWN_FILES])}{more}" if others else ""
    records = (record for file in readable for record in read_file(file))
    return Source(str(path), documents_of(records, chat), remark)


def kind_of(path: Path) -> str:
    """Return the end of a file's name without that of its compression: .jsonl of a.jsonl.gz."""
    packed = path.suffix.lower() in COMPRESSED
    return (Path(path.stem) if packed else path).suffix.lower()


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of one file; a file of text is one."""
    reader = READERS.get(kind_of(path))
    if reader is None:
        return ((str(path), whole) for whole in read_text(path))
    if reader is read_parquet and path.suffix.lower() in COMPRESSED:
        raise NearplaneError(f"{path} is compressed twice: parquet files are compressed inside")
    return reader(path)


def documents_of(records: Iterable[Record], chat: Any) -> Iterator[str]:
    """Yield the text of every record."""
    for where, record in records:
        yield from texts_of(record, where, chat)


def read_text(path: Path) -> Iterator[str]:
    """Yield the file as one document, unpacked, without a byte order mark."""
    try:
        text = unpacked(path).decode("utf-8-sig")
        yield text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise NearplaneError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise NearplaneError(f"{path} cannot be read: {error.strerror or error}") from error


def unpacked(path: Path) -> bytes:
    """Return the bytes of a file; of a packed one, those that were packed."""
    kind = path.suffix.lower()
    if kind in UNPACKERS:
        try:
            return UNPACKERS[kind](path.read_bytes())
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            said = first_line(error)
            raise NearplaneError(f"{path} is no whole {kind[1:]} file: {said}") from error
    if kind != ".zst":
        return path.read_bytes()
    try:
        import zstandard
    except ImportError as error:
        raise NearplaneError(
            f"reading {path} needs zstandard: pip install nearplane[data]"
        ) from error
    packed, parts = path.read_bytes(), []
    try:
        while packed:  # a file may be several frames
            frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(frame.decompress(packed))
            if not frame.eof:
                raise NearplaneError(f"{path} is no whole zstd file: its end is missing")
            packed = frame.unused_data
    except zstandard.ZstdError as error:
        raise NearplaneError(f"{path} is no whole zstd file: {first_line(error)}") from error
    return b"".join(parts)


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
    if name.endswith((*TEXTS, *READERS, *COMPRESSED)):
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


def read_table(path: Path) -> Iterator[Record]:
    """Yield one record a row of a .csv or .tsv file, whose first line names the columns."""
    between = "\t" if kind_of(path) == ".tsv" else ","
    try:
        rows = csv.DictReader(io.StringIO("".join(read_text(path))), delimiter=between, strict=True)
        yield from ((f"row {number} of {path}", row) for number, row in enumerate(rows, 1))
    except csv.Error as error:
        raise NearplaneError(f"{path} is no readable table: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".csv": read_table,
    ".tsv": read_table,
}
