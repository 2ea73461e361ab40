"""Calibration text of every kind becomes sequences, and no token is lost from the account."""

import functools
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearplane.types import NearplaneError
from nearplane.walk.calibration import READ, CalibrationRequest, TokenAccount, calibrate
from tests.cli import tiny
from tests.cli.tiny import TEXT

BOS, EOS = 0, 1
FEW = CalibrationRequest(sequences=4, length=16)
ALL = CalibrationRequest(sequences=10_000, length=16)


@functools.cache
def tokenizer(bos: bool = True):
    return tiny.tokenizer(bos)


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def assert_adds_up(tokens: torch.Tensor, account: TokenAccount, read: int) -> None:
    """Assert that what was read is used, dropped or padded; opening tokens are not read."""
    opened = 0 if account.opened_by is None else account.sequences
    assert tuple(tokens.shape) == (account.sequences, account.length)
    assert account.used == tokens.numel()
    assert account.used - opened + account.dropped + account.padded == read
    assert account.padded == 0 and account.dropped >= 0


@pytest.mark.parametrize("bos", [False, True])
def test_sequences_follow_the_tokenizers_convention(bos):
    """PITFALLS 21b: sequences are opened where the tokenizer opens a text, and only there."""
    tokens, account = calibrate([TEXT], tokenizer(bos), ALL)
    body = 16 - bos
    stream = ids(TEXT)
    assert account.opened_by == (BOS if bos else None)
    assert (tokens[:, 0] == BOS).all() == bos
    count = len(stream) // body
    assert tokens[:, bos:].flatten().tolist() == stream[: count * body]
    assert (account.sequences, account.dropped) == (count, len(stream) % body)
    assert_adds_up(tokens, account, len(stream))
    assert ("each opened by token 0" in account.sentence()) == bos


def test_a_tokenizer_without_such_a_token_opens_nothing():
    made = tiny.tokenizer(bos=False)
    made.bos_token = None
    assert calibrate([TEXT], made, FEW)[1].opened_by is None


def test_documents_are_joined_by_the_end_token():
    texts = [TEXT[:40], "", TEXT[50:90], TEXT[100:200]]
    tokens, account = calibrate(texts, tokenizer(False), CalibrationRequest(100, 4))
    stream = [*ids(texts[0]), EOS, *ids(texts[2]), EOS, *ids(texts[3])]
    used = len(stream) // 4 * 4
    assert tokens.flatten().tolist() == stream[:used]
    assert account.documents == 3 and account.source == "4 strings"
    assert_adds_up(tokens, account, len(stream))


@pytest.mark.parametrize("bos", [False, True])
def test_no_more_documents_are_read_than_are_needed(bos):
    length = len(ids(TEXT))
    texts = [TEXT] * (2 * READ + 3)
    for spread, documents in ((True, 2 * READ), (False, 2)):
        wanted = CalibrationRequest(2, length + bos, spread=spread)
        tokens, account = calibrate(texts, tokenizer(bos), wanted)
        assert tuple(tokens.shape) == (2, length + bos)
        assert (account.documents, account.spread) == (documents, spread)
        # each but the first has a token in front of it
        assert_adds_up(tokens, account, documents * length + documents - 1)


@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_sequences_come_evenly_from_the_whole_text(count):
    stream = torch.arange(8 * 16 + 5)
    tokens, _ = calibrate(stream, None, CalibrationRequest(count, 16))
    rows = stream[: 8 * 16].view(8, 16)
    assert torch.equal(tokens, rows[[index * 8 // count for index in range(count)]])
    tokens, _ = calibrate(stream, None, CalibrationRequest(count, 16, spread=False))
    assert torch.equal(tokens, rows[:count])


@pytest.mark.parametrize("short", [0, 1])
def test_a_text_of_just_one_sequence(short):
    length = len(ids(TEXT)) + 1
    if not short:
        tokens, account = calibrate([TEXT], tokenizer(), CalibrationRequest(9, length))
        assert (account.sequences, account.dropped) == (1, 0)
        return
    with pytest.raises(NearplaneError, match=f"{length - 1} tokens, and one sequence needs"):
        calibrate([TEXT], tokenizer(), CalibrationRequest(9, length + 1))


def lines(records: list) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def parquet(path: Path, column: str, values: list) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet_file = pytest.importorskip("pyarrow.parquet")
    parquet_file.write_table(pyarrow.table({"n": list(range(len(values))), column: values}), path)
    return path


TEXTS = [TEXT[:300], TEXT[300:700]]


@pytest.fixture
def same(tmp_path):
    """Return the sequences and fingerprint that two texts must give, whatever holds them."""

    def check(source) -> None:
        expected, account = calibrate(TEXTS, tokenizer(), ALL)
        got, other = calibrate(source, tokenizer(), ALL)
        assert torch.equal(got, expected)
        assert other.fingerprint == account.fingerprint
        assert other.documents == 2 and other.source == str(source)

    return check


@pytest.mark.parametrize("field", ["text", "content", "prompt"])
def test_jsonl_of_any_text_field(tmp_path, same, field):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + lines([{"id": 1, field: text} for text in TEXTS]) + "\n  \n")
    same(path)
    same(str(path))


def test_jsonl_of_strings_messages_and_windows_lines(tmp_path, same):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(TEXTS).replace("\n", "\r\n").encode())
    same(path)
    messages = [{"messages": [{"role": "user", "content": text}]} for text in TEXTS]
    path.write_text(lines(messages))
    same(path)


def test_jsonl_with_characters_that_look_like_the_end_of_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    text = TEXT[:100] + "\u2028" + TEXT[100:200] + "\x85" + TEXT[200:300]
    path.write_text(lines([{"text": text}]), encoding="utf-8")
    expected = calibrate([text], tokenizer(), FEW)[0]
    assert torch.equal(calibrate(path, tokenizer(), FEW)[0], expected)


def test_parquet(tmp_path, same):
    same(parquet(tmp_path / "a.parquet", "text", TEXTS))


def test_text_files_are_one_document(tmp_path):
    for name in ("a.txt", "a.md", "a"):
        (tmp_path / name).write_text(TEXT)
        tokens, account = calibrate(tmp_path / name, tokenizer(), FEW)
        assert torch.equal(tokens, calibrate([TEXT], tokenizer(), FEW)[0])
        assert account.documents == 1
        assert_adds_up(tokens, account, len(ids(TEXT)))


def test_the_chat_template_is_used_when_asked_for(tmp_path):
    made = tiny.tokenizer(bos=False)
    made.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    talk = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    wanted = CalibrationRequest(4, 16, chat_template=True, spread=False)
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"messages": talk}]))
    tokens, account = calibrate(path, made, wanted)
    assert tokens.flatten().tolist() == ids(f"[user]{TEXTS[0]}[assistant]{TEXTS[1]}")[:64]
    assert account.chat_template and account.for_json()["chat_template"]
    tokens, _ = calibrate([TEXTS[0]], made, wanted)
    assert tokens.flatten().tolist() == ids(f"[user]{TEXTS[0]}")[:64]
    plain, account = calibrate(path, made, replace(wanted, chat_template=False))
    assert plain.flatten().tolist() == ids("\n".join(TEXTS))[:64]
    assert not account.chat_template


def test_a_missing_chat_template_is_named():
    made = tiny.tokenizer(bos=False)
    made.chat_template = None
    with pytest.raises(NearplaneError, match="no chat template"):
        calibrate([TEXT], made, CalibrationRequest(4, 16, chat_template=True))


@pytest.mark.parametrize("kept", [2, 5, 9])
def test_two_dimensional_tokens_are_taken_as_they_are(kept):
    given = torch.arange(5 * 7, dtype=torch.int32).reshape(5, 7)
    tokens, account = calibrate(given, tokenizer(), CalibrationRequest(kept, 16))
    assert tokens.dtype == torch.int64 and torch.equal(tokens, given[:kept].long())
    assert account.opened_by is None and account.length == 7 and account.documents == 5
    assert_adds_up(tokens, account, 35)


def test_tokens_that_do_not_lie_in_a_row():
    given = torch.arange(64).reshape(16, 4).T
    tokens, account = calibrate(given, None, FEW)
    assert account.fingerprint == calibrate(given.clone(), None, FEW)[1].fingerprint
    assert torch.equal(tokens, given)


def test_one_dimensional_tokens_and_lists_of_them():
    one = torch.arange(2, 72)
    tokens, account = calibrate(one, None, FEW)
    assert tokens.flatten().tolist() == one[:64].tolist()
    assert_adds_up(tokens, account, 70)
    tokens, account = calibrate([one[:30], one[30:]], None, FEW)
    assert tokens.flatten().tolist() == one[:64].tolist() and account.documents == 2
    assert_adds_up(tokens, account, 70)
    tokens, account = calibrate([one[:30], one[30:]], tokenizer(), FEW)
    assert account.opened_by == BOS
    assert tokens[:, 1:].flatten()[30] == EOS
    assert_adds_up(tokens, account, 71)


def test_the_fingerprint_is_of_the_tokens_and_nothing_else():
    tokens, account = calibrate([TEXT], tokenizer(), FEW)
    assert calibrate([TEXT], tokenizer(), FEW)[1] == account
    assert calibrate(tokens, None, FEW)[1].fingerprint == account.fingerprint
    changed = tokens.clone()
    changed[-1, -1] += 1
    assert calibrate(changed, None, FEW)[1].fingerprint != account.fingerprint
    words = b"".join(number.to_bytes(8, "little") for number in range(4))
    fingerprint = calibrate(torch.arange(4)[None], None, FEW)[1].fingerprint
    assert fingerprint == hashlib.sha256(words).hexdigest()


BAD = {
    "empty.txt": (b"", "has 0 tokens"),
    "short.txt": (b"a b", "tokens, and one sequence needs 15"),
    "latin.txt": ("ä".encode("latin-1") * 3, "not UTF-8 text .byte 0."),
    "latin.jsonl": ('{"text": "ä"}'.encode("latin-1"), "not UTF-8 text .byte 10."),
    "line.jsonl": (b'{"text": "a"}\n\n{"text": \n', "line 3 of .*line.jsonl is not JSON"),
    "field.jsonl": (b'{"body": "a", "id": 3}\n', "none of the fields text, .*: it has body, id"),
    "bare.jsonl": (b"{}\n", "it has no fields"),
    "null.jsonl": (
        b'{"text": "a"}\n{"text": null}\n',
        "line 2 of .*null.jsonl: the field text is null, not text",
    ),
    "number.jsonl": (b"3\n", "is int, not text"),
    "mute.jsonl": (
        b'{"messages": [{"role": "user"}]}\n',
        "message 1 of messages in line 1 .* no mess",
    ),
    "void.jsonl": (
        b'{"messages": [{"role": "user", "content": null}]}\n',
        "message 1 of messages in line 1 of .* content that is null",
    ),
    "seen.jsonl": (
        b'{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}\n',
        "content that is list and holds no text",
    ),
    "array.json": (
        b'[{"text": "a"}, {"text": 3}]',
        "entry 2 of .*array.json: the field text is int",
    ),
    "reply.jsonl": (b'{"prompt": "a", "completion": null}\n', "the field completion is null"),
    "ints.jsonl": (b"[1, 2]\n", "messages"),
    "words.jsonl": (b'{"messages": ["a", "b"]}\n', "messages"),
    "bad.parquet": (b"PAR1", "bad.parquet is not a readable parquet file"),
}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(tmp_path, name, chat):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NearplaneError, match=said) as raised:
        calibrate(tmp_path / name, tokenizer(), CalibrationRequest(4, 16, chat))
    assert "\n" not in str(raised.value)


def test_parquet_without_text(tmp_path):
    path = parquet(tmp_path / "a.parquet", "body", TEXTS)
    with pytest.raises(NearplaneError, match="it has n, body"):
        calibrate(path, tokenizer(), FEW)


@pytest.mark.parametrize(
    "text, said",
    [
        ([], "0 strings has 0 tokens"),
        (["", ""], "2 strings has 0 tokens"),
        (torch.arange(9), "has 9 tokens, and one sequence needs 15"),
        ([torch.arange(3), torch.arange(2)], "has 6 tokens"),
        (torch.zeros(0, 16, dtype=torch.long), "holds no token"),
        (torch.zeros(3, 0, dtype=torch.long), "holds no token"),
        ("nosuch.txt", "nosuch.txt does not exist"),
        ("a text, not a name " * 300, "File name too long; text itself is given as a list"),
        (Path("no/such.jsonl"), "no/such.jsonl does not exist"),
    ],
    ids=range(9),
)
def test_bad_sources_get_one_sentence(text, said):
    with pytest.raises(NearplaneError, match=said):
        calibrate(text, tokenizer(), FEW)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(NearplaneError, match="holds no file that ends in"):
        calibrate(tmp_path, tokenizer(), FEW)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(NearplaneError, match="has no tokenizer: calibrate with token tensors"):
        calibrate([TEXT], None, FEW)


@pytest.mark.parametrize(
    "wanted", [CalibrationRequest(0, 16), CalibrationRequest(4, 1), CalibrationRequest(-1, 16)]
)
def test_too_little_wanted_is_refused(wanted):
    with pytest.raises(NearplaneError, match="at least 1 sequence of at least 2 tokens"):
        calibrate([TEXT], tokenizer(), wanted)
