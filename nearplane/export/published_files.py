"""What of a checkpoint goes to the hub: its files, with names in place of this machine's paths."""

import re
from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums
from nearplane.export.checkpoint_reader import Checkpoint, read_json
from nearplane.export.companion_files import companion_files
from nearplane.report.reading import REPORT, checked_run
from nearplane.report.report_page import PAGE, report_page

CARD = "README.md"
OWN = (fmt.CONFIG, fmt.INDEX, REPORT, PAGE, checksums.SUMS)  # beside weights and companions
# not lists of tokens, of which one might look like a path
WITH_PATHS = ("*config.json", REPORT)
ABSOLUTE = re.compile(r"~?(?:/[^/\n]+){2,}/?|~/[^\n]+|[A-Za-z]:[\\/][^\n]+")

Contents = dict[str, Path | bytes]


def published_files(checkpoint: Checkpoint) -> tuple[Contents, list[str]]:
    """Return relative name -> file or content, and a sentence on each path that was left out.

    SHA256SUMS is that of what is published. Only what belongs to the checkpoint is.
    """
    directory = checkpoint.directory
    names = {*companion_files(directory), *OWN, *checkpoint.file_of.values()} - {CARD}
    files: Contents = {n: directory / n for n in sorted(names) if (directory / n).is_file()}
    found, known = defaultdict(list), local_sources(checkpoint)
    for name in [name for name in files if any(fnmatch(name, each) for each in WITH_PATHS)]:
        value, replaced = read_json(directory / name), dict[str, str]()
        shortened = without_paths(value, known, replaced)
        if replaced:
            files[name] = fmt.json_bytes(shortened)
            if name == REPORT and PAGE in files:
                files[PAGE] = report_page(checked_run(shortened, REPORT), directory.resolve().name)
            for path in replaced.items():
                found[path].append(name)
    if found and checksums.SUMS in files:
        files[checksums.SUMS] = corrected_sums(directory / checksums.SUMS, files)
    said = [f"{', '.join(where)}: {end} in place of {path}" for (path, end), where in found.items()]
    return files, said


def local_sources(checkpoint: Checkpoint) -> dict[str, str]:
    """Return path -> last part of its name, of the model and the texts that a run was given."""
    recipe = checkpoint.config["quantization_config"].get("recipe") or {}
    calibration = recipe.get("calibration") if isinstance(recipe, dict) else None
    given = []
    if isinstance(calibration, dict):
        weights = calibration.get("weights")
        given = list(weights) if isinstance(weights, dict) and weights else []
        given = given or [calibration.get("source")]
    report = checkpoint.directory / REPORT
    given.append(read_json(report).get("model") if report.is_file() else None)
    local = [each for each in given if isinstance(each, str) and is_local(each)]
    return {path: end_of(path) for path in sorted(local, key=len, reverse=True)}


def is_local(name: str) -> bool:
    """Whether a name is a path of this machine, and no name on the hub nor one without folders."""
    if ABSOLUTE.fullmatch(name):
        return True
    try:
        return "/" in name and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def end_of(path: str) -> str:
    """Return the last part of a path."""
    kind = PurePosixPath if "/" in path else PureWindowsPath
    return kind(path).name


def without_paths(value: Any, known: Mapping[str, str], replaced: dict[str, str]) -> Any:
    """Return a JSON value whose strings have the last part of a path in its place.

    - `known`: paths to look for inside of strings, the longest first. `replaced`: what was
      replaced is added to it.
    """
    if isinstance(value, dict):
        ends = {key: without_paths(key, known, replaced) for key in value}
        return {ends[key]: without_paths(each, known, replaced) for key, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each, known, replaced) for each in value]
    if not isinstance(value, str):
        return value
    for path, end in known.items():
        if path in value:
            replaced[path] = end
            value = value.replace(path, end)
    if ABSOLUTE.fullmatch(value):
        replaced[value] = end_of(value)
        return replaced[value]
    return value


def corrected_sums(path: Path, files: Contents) -> bytes:
    """Return SHA256SUMS with the hashes of contents that differ from the files."""
    sums = checksums.stored_sums(path)
    changed = {n: checksums.bytes_hash(c) for n, c in files.items() if isinstance(c, bytes)}
    return checksums.sums_text(sums | {n: h for n, h in changed.items() if n in sums})
