"""What DESIGN.md promises of the source tree, read from the source tree."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nearplane"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import itself and these. "nearplane" is the package's root, __init__.py.
BELOW = {"types", "op", "precision", "rows", "version"}
ALLOWED = {
    "types": set(),
    "op": set(),
    "version": set(),
    "openmp": set(),
    "precision": set(),
    "rows": {"op"},
    "report": BELOW,
    "lattice": BELOW,
    "codes": BELOW,
    "methods": {"lattice", "codes", *BELOW},
    "model": {"codes", *BELOW},
    "walk": {"methods", "lattice", "codes", "model", *BELOW},
    "plan": {"walk", "methods", "lattice", "codes", "model", *BELOW},
    "export": {"codes", "model", "report", *BELOW},
    "kernels": {"lattice", "codes", *BELOW},
    "evaluate": {"walk", "export", "methods", "lattice", "codes", "model", "report", *BELOW},
    "pages": {"evaluate", "export", "methods", "lattice", "codes", "model", "report", *BELOW},
    "pipeline": {
        *("evaluate", "walk", "plan", "export", "methods", "lattice", "codes", "model", "report"),
        *BELOW,
    },
}
COMPOSERS = {"nearplane", "cli", "__main__"}  # may import everything, and nothing imports them
PURE = ("lattice", "methods")
# The words of files, clocks, terminals, models and the network.
IMPURE = {
    *("accelerate", "argparse", "datasets", "datetime", "gguf", "huggingface_hub", "io", "json"),
    *("logging", "matplotlib", "os", "pathlib", "pickle", "random", "rich", "safetensors"),
    *("shutil", "subprocess", "sys", "tempfile", "time", "tqdm", "transformers", "typer"),
}
IMPURE_CALLS = {"print", "open", "input", "exec", "eval", "breakpoint"}
BANNED = {"utils", "util", "helpers", "helper", "manager", "managers", "misc", "common"}


def trees():
    return [(path, ast.parse(path.read_text(), str(path))) for path in FILES]


def room(path: Path) -> str:
    """Return the first name below nearplane/: a folder's or a file's, or "nearplane" itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "nearplane" if first == "__init__" else first


def imported(tree: ast.AST) -> list[str]:
    """Return the dotted names that are imported anywhere in the tree, lazy imports included."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def rooms_imported(tree: ast.AST) -> set[str]:
    rooms = {room(path) for path in FILES} - {"nearplane"}
    found = set()
    for name in imported(tree):
        parts = name.split(".")
        # the version is one string of data, and the files of a checkpoint name it
        if parts[0] == "nearplane" and name != "nearplane.__version__":
            found.add(parts[1] if len(parts) > 1 and parts[1] in rooms else "nearplane")
    return found


def test_imports_point_one_way():
    wrong = []
    for path, tree in trees():
        here = room(path)
        allowed = ALLOWED.get(here, set()) | {here}
        for there in rooms_imported(tree):
            starts = (here, there) == ("__main__", "cli")
            composes = starts or here in COMPOSERS and there not in COMPOSERS
            if there not in allowed and not composes:
                wrong.append(f"{path.relative_to(ROOT)} imports {there}")
    assert not wrong


def test_every_room_is_in_the_design():
    rooms = {room(path) for path in FILES}
    assert rooms <= set(ALLOWED) | COMPOSERS


def test_the_rooms_below_import_nothing_from_above():
    """The test itself: the table has no cycle."""
    order = list(ALLOWED)
    for here in order:
        assert all(order.index(there) < order.index(here) for there in ALLOWED[here])


def modules_imported() -> dict[str, set[str]]:
    """Return module -> the modules of nearplane that it imports anywhere, for type checks too."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found: dict[str, set[str]] = {name: set() for name in names}
    for here, path in names.items():
        for there in imported(ast.parse(path.read_text())):
            while there and there not in names:
                there = there.rpartition(".")[0]
            if there and there != here:
                found[here].add(there)
    return found


def test_no_files_import_each_other():
    """Not even in a circle of several, nor inside functions."""
    left = modules_imported()
    # whoever imports nothing that is left cannot be in a circle
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    # what is left imports a circle or is in one; drop what nobody left imports
    while free := left.keys() - set().union(*left.values()):
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, sorted(left)


@pytest.mark.parametrize("here", PURE)
def test_mathematics_is_pure(here):
    """No file, clock, terminal or model; only what `reduce` and `methods` are allowed by name."""
    wrong = []
    for path, tree in trees():
        if room(path) != here:
            continue
        wrong += [f"{path.name} imports {n}" for n in imported(tree) if n.split(".")[0] in IMPURE]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in IMPURE_CALLS:
                    wrong.append(f"{path.name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.Global | ast.Nonlocal):
                wrong.append(f"{path.name}:{node.lineno} has a global")
            if isinstance(node, ast.Attribute) and node.attr in ("save", "load", "cuda"):
                wrong.append(f"{path.name}:{node.lineno} uses .{node.attr}")
    assert not wrong


def test_files_are_short():
    long = {str(path): lines for path in FILES if (lines := count(path)) > 400}
    assert not long


def count(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_functions_are_short(record_property, capsys):
    """p90 at most 25 lines, none above 60, from `def` or its first decorator to the last line."""
    lengths = []
    for path, tree in trees():
        if room(path) == "kernels":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                where = f"{path.relative_to(ROOT)}:{node.name}"
                lengths.append((node.end_lineno - first + 1, where))
    lengths.sort()
    p90, longest = lengths[int(0.9 * (len(lengths) - 1))][0], lengths[-1]
    record_property("p90_function_lines", p90)
    record_property("longest_function", str(longest))
    with capsys.disabled():
        print(f" [{len(lengths)} functions, p90 {p90} lines, longest {longest}] ", end="")
    assert p90 <= 25
    assert longest[0] <= 60, longest


def test_no_vague_names():
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(ROOT).parts}
    assert not names & BANNED
    wrong = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.lower().endswith(("manager", "helper")):
                wrong.append(f"{path.name}: class {node.name}")
    assert not wrong


def test_no_environment_variables():
    wrong = []
    for path, tree in trees():
        if path.name == "openmp.py":
            continue  # OpenMP's own settings, which there is no other way to give; none is of ours
        for node in ast.walk(tree):
            name = getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))
            if isinstance(node, ast.Attribute | ast.Name | ast.alias) and name in (
                "environ",
                "getenv",
                "environb",
                "getenvb",
                "putenv",
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')} {name}")
    assert not wrong


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


# A path is anything in backticks or a link that begins with a folder of this repository.
PATH = re.compile(r"(?:`|\]\()((?:nearplane|tests|docs|bench|examples)/[\w./*-]+)(?:`|\)|::|#)")


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_paths_in_documents_exist(document):
    missing = []
    for line in document.read_text().splitlines():
        for path in PATH.findall(line):
            if not list(ROOT.glob(path.rstrip("/."))):
                missing.append(path)
    assert not missing


def test_paths_in_docstrings_exist():
    missing = []
    for path in FILES:
        # what the command line prints as an example is not a promise
        for name in re.findall(r"\b(?:docs|tests|bench)/[\w./-]+\.(?:md|py)\b", path.read_text()):
            if not (ROOT / name).exists():
                missing.append(f"{path.relative_to(ROOT)} names {name}")
    assert not missing


# [Chen26, Thm. 5], [Frantar23, Alg. 1; Chen26, Alg. 1], [Babai86]
CITATION = re.compile(r"\[((?:[A-Z][A-Za-z-]*\d\d)(?:[,;][^\]]*)?)\]")


def test_every_citation_is_resolved():
    references = (ROOT / "docs" / "REFERENCES.md").read_text()
    known = set(re.findall(r"^\W*\[([A-Z][A-Za-z-]*\d\d)\]", references, re.MULTILINE))
    sources = [*FILES, *sorted((ROOT / "bench").glob("*.py")), *documents()]
    used: dict[str, str] = {}
    for path in sources:
        for citation in CITATION.findall(path.read_text()):
            for part in citation.split(";"):
                key = part.strip().split(",")[0].strip()
                if re.fullmatch(r"[A-Z][A-Za-z-]*\d\d", key):
                    used[key] = str(path.relative_to(ROOT))
    unresolved = {key: path for key, path in used.items() if key not in known}
    assert not unresolved
    assert {"Chen26", "Frantar23", "Babai86"} <= set(used)
