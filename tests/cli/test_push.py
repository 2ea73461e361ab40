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

import nearplane as npl
from nearplane.export.checksums import verify_sums
from nearplane.export.hub import prepared
from nearplane.export.published_files import is_local, without_paths
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


def test_every_file_and_a_card_are_sent(hub, checkpoint, text, tmp_path):
    """As they are, but for paths of this machine, which are said."""
    done = pushed(hub, checkpoint, "me/tiny", "--license", "mit", "--text", text, "--windows", 1)
    assert done.returncode == 0, done.stderr
    own = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    card = hub.files.pop("README.md").decode()
    assert f"{len(own) + 1} files" in done.stdout and hub.files.keys() == own.keys()
    changed = {name for name in own if own[name] != hub.files[name]}
    assert changed == {"config.json", "report.html", "report.json", "SHA256SUMS"}
    assert not any(str(text.parent).encode() in content for content in hub.files.values())
    assert f"config.json, report.json: {text.name} in place of {text}" in done.stderr
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert verify_sums(tmp_path) == [] and npl.load(tmp_path, dequantize=True)
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
    found = prepared(out, "me/tiny")
    data = ModelCard(found.card()).data
    assert (data.license, data.base_model, data.language) == ("apache-2.0", "org/base", ["en"])
    assert data.base_model_relation == "quantized" and "eclq" in data.tags
    assert found.files.keys() == {path.name for path in out.iterdir()}
    assert f"report.json: model in place of {copied}" in found.shortened


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
        found = prepared(out, "me/tiny")
        assert "org/base" not in found.card() and ModelCard(found.card()).data.license is None
    assert not [name for name in found.files if "env" in name or ".git" in name]
    (out / "report.json").write_text("{")
    with pytest.raises(NearplaneError, match="cannot be read as JSON"):
        prepared(out, "me/tiny")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/", "me/ti ny", "me/-x"])
def test_names_that_are_none_are_refused(name, checkpoint):
    with pytest.raises(NearplaneError, match="is no name on the hub"):
        prepared(checkpoint, name)


def test_what_is_no_checkpoint_is_refused(model_dir):
    with pytest.raises(NearplaneError):
        prepared(model_dir, "me/tiny")


def test_paths_of_this_machine_become_names(tmp_path):
    """Of what a run was given anywhere, of whole strings elsewhere; tokens and names stay."""
    (tmp_path / "a b.txt").write_text("text")
    path, replaced = str(tmp_path / "a b.txt"), {}
    value = {
        "source": f"{path}:2, Salesforce/wikitext:1",
        "weights": {path: 2.0, "Salesforce/wikitext": 1.0},
        "others": ["/home/me/model", "~/texts", "C:\\Users\\me\\x.txt", 3, None],
        "kept": ["</s>", "/", "/no_think", "org/name", "https://a.b/c/d", r"re:.*\.mlp\..*"],
    }
    assert is_local(path) and not is_local("Salesforce/wikitext") and not is_local("notes.txt")
    found = without_paths(value, {path: "a b.txt"}, replaced)
    assert found["source"] == "a b.txt:2, Salesforce/wikitext:1"
    assert found["weights"] == {"a b.txt": 2.0, "Salesforce/wikitext": 1.0}
    assert found["others"] == ["model", "texts", "x.txt", 3, None]
    assert found["kept"] == value["kept"] and len(replaced) == 4
