"""Records as people have them: what a document is made of, with a chat template and without."""

import gzip
import json
from pathlib import Path

import pytest

from nearplane.types import NearplaneError
from nearplane.walk.documents import read_documents
from nearplane.walk.records import texts_of


class Chat:
    """A tokenizer whose template shows what it is given."""

    chat_template = "shown"

    def apply_chat_template(self, messages, tokenize):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


SAID = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
FROM = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "o"}, "ne"]},
    SAID[1],
]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
PLAIN, TEMPLATED = "one\ntwo", "<user>one<assistant>two"
RECORDS = {
    "a string": ("one", "one", "<user>one"),
    "a text": ({"text": "one", "id": 3}, "one", "<user>one"),
    "a content": ({"content": "one"}, "one", "<user>one"),
    "a prompt": ({"prompt": "one"}, "one", "<user>one"),
    "messages": ({"messages": SAID}, PLAIN, TEMPLATED),
    "a list of messages": (SAID, PLAIN, TEMPLATED),
    "of ShareGPT": ({"conversations": FROM}, PLAIN, TEMPLATED),
    "of one conversation": ({"conversation": FROM}, PLAIN, TEMPLATED),
    "in parts": ({"messages": PARTS}, PLAIN, TEMPLATED),
    "instructions": ({"instruction": "one", "input": "", "output": "two"}, PLAIN, TEMPLATED),
    "with a context": (
        {"instruction": "one", "input": "1", "output": "two"},
        "one\n\n1\ntwo",
        "<user>one\n\n1<assistant>two",
    ),
    "a completion": ({"prompt": "one", "completion": "two"}, PLAIN, TEMPLATED),
    "an answer": ({"question": "one", "answer": "two"}, PLAIN, TEMPLATED),
    "a tool call": (
        {"messages": [SAID[0], CALL]},
        'one\n[{"function": {"name": "f"}}]',
        "<user>one<assistant>",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_one_document(name):
    record, plain, templated = RECORDS[name]
    assert list(texts_of(record, "here")) == [plain]
    assert list(texts_of(record, "here", Chat())) == [templated]


def test_a_list_of_records_is_as_many_documents():
    assert list(texts_of(["a", {"text": "b"}], "here")) == ["a", "b"]
    with pytest.raises(
        NearplaneError, match="entry 2 of here is null, not text|neither of records"
    ):
        list(texts_of(["a", None], "here"))


def test_nothing_is_read_as_the_words_of_python():
    """No repr of a list, no None."""
    for wrong in (
        None,
        [None],
        {"text": ["a", None]},
        {"messages": [{"role": "a", "content": {}}]},
    ):
        with pytest.raises(NearplaneError, match="here"):
            list(texts_of(wrong, "here"))


LINES = [json.dumps({"text": "one"}), json.dumps({"text": "two"})]
FILES = {
    "a.jsonl": "\n".join(LINES),
    "windows.jsonl": "\ufeff" + "\r\n".join(LINES) + "\r\n",
    "gaps.jsonl": "\n\n" + "\n \n".join(LINES),
    "array.json": json.dumps(list(map(json.loads, LINES))),
    "indented.json": json.dumps(list(map(json.loads, LINES)), indent=2),
    "indented.jsonl": json.dumps(list(map(json.loads, LINES)), indent=2),
    "strings.json": json.dumps(["one", "two"]),
    "lines.json": "\n".join(LINES),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_records(name, tmp_path: Path):
    (tmp_path / name).write_bytes(FILES[name].encode())
    source = read_documents(tmp_path / name)
    assert source.name == str(tmp_path / name) and list(source.documents) == ["one", "two"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_files_that_are_packed(name, packed, tmp_path: Path):
    pack = gzip.compress if packed == ".gz" else pytest.importorskip("zstandard").compress
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(pack(FILES[name].encode()))
    assert list(read_documents(path).documents) == ["one", "two"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(NearplaneError, match="no whole|not UTF-8"):
        list(read_documents(path).documents)


def test_a_directory_is_all_its_files_of_text(tmp_path: Path):
    (tmp_path / "b").mkdir()
    for name, content in (("b/c.txt", "three"), ("a.jsonl", FILES["lines.json"]), ("z.pdf", "")):
        (tmp_path / name).write_text(content)
    source = read_documents(tmp_path)
    assert list(source.documents) == ["one", "two", "three"] and source.remark == "not read: z.pdf"
    (tmp_path / "only").mkdir()
    with pytest.raises(NearplaneError, match="holds no file that ends in"):
        read_documents(tmp_path / "only")


def test_a_text_has_no_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert list(read_documents(tmp_path / "a.txt").documents) == ["one\ntwo"]


MORE = {
    "tables have all columns": (
        [{"role": None, "content": None, "from": "human", "value": "one"}, SAID[1]],
        ["one", "two"],
    ),
    "an image's null text": (
        [{"role": "user", "content": [{"type": "image", "text": None}, {"text": "one"}]}, SAID[1]],
        ["one", "two"],
    ),
    "a call of old": (
        [SAID[0], {"role": "assistant", "content": None, "function_call": {"name": "f"}}],
        ["one", '{"name": "f"}'],
    ),
    "a thought": (
        [SAID[0], {"role": "assistant", "content": "two", "reasoning_content": "hm"}],
        ["one", "hm", "two"],
    ),
}


@pytest.mark.parametrize("kind", MORE)
def test_messages_as_tables_and_apis_have_them(kind):
    messages, lines = MORE[kind]
    (text,) = texts_of({"messages": messages}, "here")
    assert text.split("\n") == lines


def test_conversations_in_other_fields():
    said = {"system": "be brief", "conversations": SAID}
    assert next(texts_of(said, "here")) == "be brief\none\ntwo"
    assert next(texts_of({"messages": json.dumps(SAID)}, "here")) == "one\ntwo"
    pair = {"prompt": SAID[:1], "completion": SAID[1:]}
    assert next(texts_of(pair, "here")) == "one\ntwo"
    alpaca = {"instruction": "one", "output": "two", "system": "be brief"}
    assert next(texts_of(alpaca, "here")) == "be brief\none\ntwo"


def test_tools_are_given_to_the_template():
    class Told(Chat):
        def apply_chat_template(self, messages, tokenize, tools=None):
            return f"{tools}"

    record = {"messages": SAID, "tools": json.dumps([{"name": "f"}])}
    assert next(texts_of(record, "here", Told())) == "[{'name': 'f'}]"


def test_tables(tmp_path: Path):
    (tmp_path / "a.csv").write_text('text,n\n"one, two",1\nthree,2\n')
    (tmp_path / "b.TSV").write_text("n\ttext\n1\tfour\n")
    assert list(read_documents(tmp_path).documents) == ["one, two", "three", "four"]


def test_a_source_is_its_name_its_documents_and_a_remark(tmp_path: Path):
    """In this order: whoever takes the second takes the documents."""
    (tmp_path / "a.txt").write_text("one")
    name, documents, remark = read_documents(tmp_path / "a.txt")
    assert (name, list(documents), remark) == (str(tmp_path / "a.txt"), ["one"], "")
