"""`nearplane serve`, asked by the client of openai."""

import os
import socket
import subprocess
import sys
import time

import openai
import pytest

from tests.cli.fences import ROOT, blocks

WAIT = 120  # seconds for the server to come up on a busy machine


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    """A client of a server in another process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nearplane", "serve", checkpoint, "--port", port]
    command += ["--server", "transformers"]
    folder = tmp_path_factory.mktemp("server")
    said = folder / "said.txt"
    with said.open("w") as file:
        environment = os.environ | {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        words = list(map(str, command))
        server = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        give_up = time.monotonic() + WAIT
        while "Uvicorn running" not in said.read_text():
            assert server.poll() is None and time.monotonic() < give_up, said.read_text()
            time.sleep(0.2)
        yield openai.OpenAI(
            base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0, timeout=60
        )
    finally:
        server.terminate()
        server.wait(30)


def test_the_list_of_models_is_answered(client):
    assert client.models.list() is not None


def test_completions(client, checkpoint):
    asked = {"model": str(checkpoint), "prompt": "the nearest plane", "max_tokens": 5}
    done = client.completions.create(**asked, temperature=0)
    assert done.usage.completion_tokens <= 5 and isinstance(done.choices[0].text, str)
    again = client.completions.create(**asked, temperature=0)
    assert again.choices[0].text == done.choices[0].text


def test_chat(client, checkpoint):
    messages = [{"role": "user", "content": "round it"}]
    asked = {"model": str(checkpoint), "messages": messages, "max_tokens": 5, "temperature": 0}
    done = client.chat.completions.create(**asked)
    assert done.choices[0].message.role == "assistant"
    parts = client.chat.completions.create(**asked, stream=True)
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == done.choices[0].message.content


def test_the_guide_asks_it(client, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").symlink_to(checkpoint, target_is_directory=True)
    [block] = [b for b in blocks(ROOT / "docs/guides/serving.md") if b.words == "server"]
    url = "http://localhost:8000/v1"
    assert url in block.text
    exec(block.text.replace(url, str(client.base_url)), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", 0], "--port must lie between 1 and 65535"),
        (["--server", "ollama"], "--server must be one of auto, transformers, vllm"),
        (["--arithmetic", "int3"], "no arithmetic is called 'int3'"),
    ],
)
def test_what_it_refuses(words, said, nearplane, checkpoint):
    done = nearplane("serve", checkpoint, *words)
    assert done.exit_code == 1 and said in done.output


def test_what_is_no_checkpoint_is_refused(nearplane, model_dir, tmp_path):
    for directory in (tmp_path, model_dir):
        assert nearplane("serve", directory).exit_code == 1
