"""`rlgkd push`: the model, its card and the report go to a folder, or to a hub by the hub's own client."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sample_run import make_run

from rlgkd.errors import CheckpointError, DataError
from rlgkd.scripts._yaml import dump_yaml, load_yaml
from rlgkd.scripts.report.html import write_report
from rlgkd.scripts.runs.push import push


@pytest.fixture
def run(tmp_path: Path) -> Path:
    out = tmp_path / "mine"
    out.mkdir()
    make_run(out)
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text("{}")
    (out / "model" / "model.safetensors").write_bytes(b"\0" * 8)
    (out / "report.html").write_text("<p>")
    return out


SENT = {"config.json", "model.safetensors", "README.md", "report.html", "summary.json", "config.yaml"}


def test_a_folder_stands_for_a_hub_and_keeps_what_else_is_in_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "LICENSE").touch()
    assert push(run, str(tmp_path / "hub")) == str(tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == SENT | {"LICENSE"}
    assert (tmp_path / "hub" / "README.md").read_text() == (run / "model" / "README.md").read_text()


def test_a_run_that_has_not_ended_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "model" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it must hold model/config\.json"):
        push(run, str(tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff{", b"[5]"])
def test_a_run_whose_settings_or_summary_cannot_be_read_is_not_sent(
    run: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """Without them paths of this machine would be sent as they stand, and a card that says nothing."""
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.*missing or cannot be read"):
        push(run, str(tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("name", ["model/notes.txt", "report.html", "model"])
def test_a_link_in_a_run_is_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    """A run of somebody else could so send a file of one's own."""
    elsewhere = tmp_path / "elsewhere"
    if name == "model":
        (run / name).rename(elsewhere)
    else:
        elsewhere.write_text("private")
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="it is a link"):
        push(run, str(tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()


def test_no_path_of_this_machine_is_sent(run: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    settings = {
        "name": "mine",
        "student": f"{models}/small",
        "teacher": f"{models}/runs/a/model",
        "tokens": 300,
        "env_settings": {
            "data": {"train": f"{tmp_path}/a/data.jsonl", "test": f"{tmp_path}/b/data.jsonl"},
            "reward": {"near": {"name": f"{tmp_path}/r\xe4ward <1>.py:near"}, "exact": {"name": "exact"}},
            "prompt": "/no_think {question}",
            "own": str(tmp_path),
        },
    }
    (run / "config.yaml").write_text(dump_yaml(settings))
    old = {"setting": "data", "old": f"{tmp_path}/old.jsonl", "new": 1, "tokens": 3}
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"changes": [old], "first": f"raised ({tmp_path}/r\xe4ward <1>.py:3, in near)"}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "model" / "rlgkd_agent.json").write_text(json.dumps({"settings": {"policy": f"{models}/small"}}))
    write_report(run)
    (tmp_path / "hub").mkdir()
    push(run, str(tmp_path / "hub"))
    sent = {path.name: path.read_text() for path in (tmp_path / "hub").iterdir() if path.suffix != ".safetensors"}
    assert {"README.md", "report.html", "summary.json", "config.yaml", "rlgkd_agent.json"} <= sent.keys()
    assert not [name for name, text in sent.items() if str(tmp_path) in text]
    config = load_yaml(sent["config.yaml"])
    assert (config["student"], config["teacher"]) == ("./small", "./a/model")
    assert config["env_settings"] == {
        "data": {"train": "./a/data.jsonl", "test": "./b/data.jsonl"},
        "reward": {"near": {"name": "./r\xe4ward <1>.py:near"}, "exact": {"name": "exact"}},
        "prompt": "/no_think {question}",
        "own": f"./{tmp_path.name}",
    }
    assert json.loads(sent["summary.json"])["first"] == "raised (./r\xe4ward <1>.py:3, in near)"
    assert str(tmp_path) in (run / "config.yaml").read_text(), "the run's own files stay"
    with pytest.raises(DataError, match="repository: '' does not work; give owner/name"):
        push(run, "")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a commit of small files needs."""

    requests: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        self.requests.append((self.path, lines))
        address = f"http://{self.headers['Host']}/me/mine"
        if self.path.endswith("/create"):
            answer: Any = {"url": address, "name": "me/mine", "id": "0"}
        elif "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            answer = {"files": files}
        else:
            answer = {"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True}
        self.send_response(403 if self.headers.get("Authorization") != "Bearer hf_right" else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.requests = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    yield Hub
    server.shutdown()
    server.server_close()


def test_the_hubs_own_client_sends_one_commit(run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert push(run, "me/mine", message="first").endswith("/me/mine/commit/1")
    (create, [made]), *_, (path, [header, *files]) = hub.requests
    assert (create, made["name"], made["organization"]) == ("/api/repos/create", "mine", "me")
    assert made.get("visibility", made.get("private")) in ("private", True)
    assert path == "/api/models/me/mine/commit/main" and header["value"]["summary"] == "first"
    assert {file["value"]["path"] for file in files} == SENT
    (card,) = [file["value"]["content"] for file in files if file["value"]["path"] == "README.md"]
    assert base64.b64decode(card) == (run / "model" / "README.md").read_bytes()


def test_what_the_hub_refuses_is_one_line(run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DataError, match=r"repository: 'me/mine' does not work; the hub did not take it: .*403"):
        push(run, "me/mine")
    with pytest.raises(DataError, match="the hub did not take it"):
        push(run, "not a name")
