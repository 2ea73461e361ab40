"""Return unused memory to the operating system, and ask how much is available."""

import ctypes
import os
import re
from pathlib import Path

MADV_DONTNEED = 4
MAPS = Path("/proc/self/maps")
PAGES = Path("/proc/self/smaps")  # the same with the written pages of each mapping; slow to read
LEAST = 16 << 20  # bytes of mapped files: for fewer, PAGES takes longer to read than it is worth
HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)$")


def trim() -> None:
    """Return freed heap memory to the system; malloc keeps it where freed tensors left gaps."""
    trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim_heap is not None:
        trim_heap(0)


def forget_file_pages(suffix: str = ".safetensors") -> None:
    """Free the pages of mapped weight files; they are read again when they are needed.

    Mappings with written pages are left alone, since the file does not hold what was written. Does
    nothing where the system has no /proc, nor for less than `LEAST` bytes of mappings.
    """
    if not MAPS.exists() or mapped_bytes(MAPS.read_text(errors="replace"), suffix) < LEAST:
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in clean_mappings(PAGES.read_text(errors="replace"), suffix):
        advise(start, end - start, MADV_DONTNEED)


def mapped_bytes(maps: str, suffix: str) -> int:
    """Return the size of all mappings of files named *suffix."""
    headers = [HEADER.match(line) for line in maps.splitlines() if line.endswith(suffix)]
    return sum(int(found[2], 16) - int(found[1], 16) for found in headers if found)


def clean_mappings(smaps: str, suffix: str) -> list[tuple[int, int]]:
    """Return start and end of the mappings of files named *suffix that hold no written page."""
    clean, current = [], None
    for line in smaps.splitlines():
        header = HEADER.match(line) if line[0] in "0123456789abcdef" else None
        if header:
            named = header[3].endswith(suffix)
            current = (int(header[1], 16), int(header[2], 16)) if named else None
        elif current and line.startswith(("Private_Dirty:", "Shared_Dirty:", "Anonymous:")):
            if int(line.split()[1]):
                current = None
        elif current and line.startswith("VmFlags:"):
            clean.append(current)
    return clean


def available_bytes() -> int:
    """Return how many bytes of memory are available now."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024  # pyright: ignore
    except (OSError, TypeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
