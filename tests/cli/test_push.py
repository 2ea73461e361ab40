"""`nearplane push`: the card, and what a stand-in of the hub's API is sent."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from nearplane.export.hub import push
from nearplane.types import NearplaneError

CARD = "---\nlicense: apache-2.0\nlanguage: en\nbase_model: org/base\n---\n# A model\n"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, and keeps what a commit holds in `server.files`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        here = f"http://localhost:{self.server.server_port}"
        if "refused" in self.path or b"refused" in body[:300]:
            return self.answer({"error": "you have no rights here"}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            return self.answer({"url": f"{here}/{asked['organization']}/{asked['name']}"})
        if self.path.endswith("/preupload/main"):
            named = [each["path"] for each in json.loads(body)["files"]]
            parts = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer({"files": [parts | {"path": name} for name in named]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
            answer = {"commitUrl": f"{here}/me/tiny/commit/0", "commitOid": "0" * 40}
            return self.answer(answer)
        return self.answer({})

    def do_GET(self):
        self.answer({"id": "me/tiny", "sha": "0" * 40, "siblings": []})

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("localhost", 0), Hub)
    server.files, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def pushed(hub, *words):
    address = f"http://localhost:{hub.server_port}"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "nearplane", "push", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_file_and_a_card_are_sent(hub, checkpoint, text):
    done = pushed(hub, checkpoint, "me/tiny", "--license", "mit", "--text", text, "--windows", 1)
    assert done.returncode == 0, done.stderr
    own = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    card = hub.files.pop("README.md").decode()
    assert hub.files == own and f"{len(own) + 1} files" in done.stdout
    assert "license: mit" in card and "perplexity" in card and 'npl.load("me/tiny")' in card
    assert "/tmp" not in card
    assert "/api/repos/create" in hub.asked[0]


def test_what_the_hub_refuses_is_said(hub, checkpoint):
    done = pushed(hub, checkpoint, "me/refused")
    assert done.returncode == 1 and "uploading to me/refused failed" in done.stderr
    assert "Traceback" not in done.stderr and not hub.files
    assert "no licence of the base model is known" in done.stderr


def test_the_card_carries_the_base_models_licence(checkpoint, model_dir, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(model_dir, copied)
    (copied / "README.md").write_text(CARD)
    out = tmp_path / "out"
    shutil.copytree(checkpoint, out)
    report = json.loads((out / "report.json").read_text()) | {"model": str(copied)}
    (out / "report.json").write_text(json.dumps(report))
    card, files = push(out, "me/tiny", dry_run=True)
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.language) == ("apache-2.0", "org/base", ["en"])
    assert data.base_model_relation == "quantized" and "eclq" in data.tags
    assert {path.name for path in files} == {path.name for path in out.iterdir()}


def test_what_is_beside_a_checkpoint_stays_there(checkpoint, tmp_path, monkeypatch):
    """Hidden files, and the card of the directory that the command runs in."""
    out = tmp_path / "out"
    shutil.copytree(checkpoint, out)
    (out / ".env").write_text("secret")
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("secret")
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    for model in ("", "./gone", "/gone", "~/gone", "a/b/c", 7):
        report = json.loads((out / "report.json").read_text()) | {"model": model}
        (out / "report.json").write_text(json.dumps(report))
        card, files = push(out, "me/tiny", dry_run=True)
        assert "org/base" not in card and ModelCard(card).data.license is None
    assert not [path for path in files if "env" in path.name or ".git" in path.parts]
    (out / "report.json").write_text("{")
    with pytest.raises(NearplaneError, match="cannot be read as JSON"):
        push(out, "me/tiny", dry_run=True)


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/", "me/ti ny", "me/-x"])
def test_names_that_are_none_are_refused(name, checkpoint):
    with pytest.raises(NearplaneError, match="is no name on the hub"):
        push(checkpoint, name)


def test_what_is_no_checkpoint_is_refused(model_dir):
    with pytest.raises(NearplaneError):
        push(model_dir, "me/tiny")
