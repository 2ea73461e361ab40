"""Which mapped files may be let go, read from the kernel's own account of them."""

import pytest

from nearplane.model import process_memory
from nearplane.model.process_memory import clean_mappings, forget_file_pages, mapped_bytes, trim

COUNTS = """Size:                 68 kB
Rss:                  68 kB
Shared_Clean:          0 kB
Shared_Dirty:          {shared} kB
Private_Clean:        68 kB
Private_Dirty:         {private} kB
Anonymous:             {anonymous} kB
AnonHugePages:         0 kB
VmFlags: rd mr mw me
"""


def mapping(start: int, end: int, name: str = "", shared=0, private=0, anonymous=0) -> str:
    inode = 42 if name else 0
    header = f"{start:x}-{end:x} r--s 00000000 fe:01 {inode}          {name}".rstrip()
    return f"{header}\n{COUNTS.format(shared=shared, private=private, anonymous=anonymous)}"


WEIGHTS = "/models/a b/model-00001.safetensors"


def clean(*mappings: str) -> list[tuple[int, int]]:
    return clean_mappings("".join(mappings), ".safetensors")


def test_a_clean_mapping_of_weights_is_found():
    assert clean(mapping(0x7F0000, 0x7F9000, WEIGHTS)) == [(0x7F0000, 0x7F9000)]


def test_addresses_of_64_bits():
    assert clean(mapping(0x7FFF12345000, 0x7FFF12346000, WEIGHTS)) == [
        (0x7FFF12345000, 0x7FFF12346000)
    ]


def test_written_mappings_are_kept():
    for written in ("shared", "private", "anonymous"):
        assert clean(mapping(0x1000, 0x2000, WEIGHTS, **{written: 4})) == []


def test_other_mappings_are_kept():
    others = ("", "[heap]", "/lib/libtorch.so", WEIGHTS + ".lock", WEIGHTS + " (deleted)")
    assert clean(*(mapping(0x1000, 0x2000, name) for name in others)) == []


def test_each_mapping_is_judged_by_its_own_lines():
    found = clean(
        mapping(0x1000, 0x2000, WEIGHTS, private=4),
        mapping(0x2000, 0x3000, WEIGHTS),
        mapping(0x3000, 0x4000, "[heap]", anonymous=8),
        mapping(0x4000, 0x5000, WEIGHTS, anonymous=4),
        mapping(0x5000, 0x6000),
        mapping(0x6000, 0x7000, WEIGHTS),
    )
    assert found == [(0x2000, 0x3000), (0x6000, 0x7000)]


def test_an_account_that_breaks_off_names_nothing():
    whole = mapping(0x1000, 0x2000, WEIGHTS)
    assert clean(whole[: whole.index("Private_Dirty")]) == []
    assert clean("") == []


def test_only_mappings_of_weights_are_counted():
    names = ("", "[heap]", "/lib/libtorch.so", WEIGHTS + ".lock", WEIGHTS, WEIGHTS + " (deleted)")
    lines = [mapping(0x1000, 0x3000, name).splitlines()[0] for name in names]
    assert mapped_bytes("\n".join(lines * 2), ".safetensors") == 2 * 0x2000


def test_few_pages_are_not_looked_for(monkeypatch, tmp_path):
    (tmp_path / "maps").write_text(mapping(0, process_memory.LEAST - 1, WEIGHTS).splitlines()[0])
    monkeypatch.setattr(process_memory, "MAPS", tmp_path / "maps")
    monkeypatch.setattr(process_memory, "PAGES", tmp_path / "none")
    forget_file_pages()
    (tmp_path / "maps").write_text(mapping(0, process_memory.LEAST, WEIGHTS).splitlines()[0])
    with pytest.raises(FileNotFoundError):
        forget_file_pages()


def test_forgetting_alters_no_number(tmp_path, monkeypatch):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    monkeypatch.setattr(process_memory, "LEAST", 1)
    save_file({"a": torch.arange(100_000.0)}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        mapped = file.get_tensor("a")
        forget_file_pages()
        trim()
        assert torch.equal(mapped, torch.arange(100_000.0))


def test_systems_without_an_account_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "MAPS", tmp_path / "smaps")
    forget_file_pages()
