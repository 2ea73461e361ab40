"""Every command explains itself, quickly; a command line that is wrong is refused."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import nearplane.cli
from nearplane.cli.app import COMMANDS, app
from nearplane.cli.failure import explained
from nearplane.cli.method_options import all_fields, help_of
from nearplane.cli.run_settings import Settings
from nearplane.cli.whole_help import summary
from nearplane.types import NearplaneError
from nearplane.walk.documents import COMPRESSED, READERS, TEXTS


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


@pytest.mark.parametrize("name", ["", *(name for name, _, _ in COMMANDS)])
def test_help_is_whole_in_80_columns(nearplane, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    said = nearplane(*([name] if name else []), "--help").output
    assert "…" not in said and not re.search(r"\w\.\.\.(?!])", said)
    assert max(map(len, said.splitlines())) <= 80
    # every text stands whole, but for where its lines end
    words = " ".join(said.split())
    command = typer.main.get_command(app)
    shown = command.commands[name] if name else command
    for parameter in shown.params:
        if not name or parameter.help is None:
            continue
        assert " ".join(parameter.help.split()) in words, parameter.name
    for other in [] if name else COMMANDS:
        assert summary(other[1]) in words


def test_every_option_of_the_methods_says_what_it_is_for():
    for name, field in all_fields().items():
        said = help_of(field)
        assert not said.startswith("The field") and len(said) > 40, name
    assert "0.1 of eclq and gguf, 0.01 of" in help_of(all_fields()["damping"])
    assert "default --gain" in help_of(all_fields()["gain"])


def test_help_and_readme_list_the_formats_of_calibration_texts():
    known = {*TEXTS, *READERS, *COMPRESSED}
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    said = re.search(r"Calibration text is (.*?), a directory of them", readme, re.S)
    assert said and set(re.findall(r"`(\.\w+)`", said[1])) == known
    annotation = Settings.__annotations__["calibration"]
    assert set(re.findall(r"\.[a-z]\w+", annotation.__metadata__[0].help.split(";")[0])) == known


def test_a_file_has_one_option_for_its_place():
    command = typer.main.get_command(app)
    for name, made in command.commands.items():
        flags = {flag for parameter in made.params for flag in parameter.opts}
        assert not flags & {"--output", "-o"}, name
