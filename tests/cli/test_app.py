"""Every command explains itself, quickly; a command line that is wrong is refused."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import nearplane.cli
from nearplane.cli.app import COMMANDS
from nearplane.cli.failure import explained
from nearplane.types import NearplaneError


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_every_command_has_help_with_an_example(nearplane, name):
    result = nearplane(name, "--help")
    assert result.exit_code == 0 and f"Example: nearplane {name}" in result.output


def test_wrong_usage_exits_with_2(nearplane):
    assert nearplane("nosuch").exit_code == 2
    assert nearplane("inspect").exit_code == 2
    assert nearplane("plan", "x", "--bits", "many").exit_code == 2


def test_help_imports_nothing_slow():
    script = (
        "import sys; from typer.testing import CliRunner; from nearplane.cli.app import app;"
        "assert CliRunner().invoke(app, ['quantize', '--help']).exit_code == 0;"
        "print([m for m in ('transformers', 'safetensors', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found


def test_no_module_of_the_command_line_imports_torch_at_its_head():
    for path in Path(nearplane.cli.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not {n.split(".")[0] for n in names} & {"torch", "transformers"}, path


@pytest.mark.parametrize(
    "error, status, said",
    [
        (NearplaneError("two\n  lines"), 1, "error: two lines"),
        (FileNotFoundError(2, "No such file", "a.txt"), 1, "error: a.txt: No such file"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_are_one_sentence_and_a_status(capsys, error, status, said):
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        explained(fail)()
    assert caught.value.exit_code == status and said in capsys.readouterr().err


def test_a_closed_pipe_is_left_to_typer():
    def fail() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        explained(fail)()
