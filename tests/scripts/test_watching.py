"""The live page: over HTTP as a browser asks for it, of a run that trains, of a finished one, and of a comparison."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Outline, browse, needs_browser
from old_runs import make
from sample_comparison import results, write_page
from sample_run import make_run

from rlgkd.errors import CheckpointError, SettingError
from rlgkd.scripts import watching

Answer = tuple[int, str]


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Callable[..., Answer]]]:
    """A function of a folder that returns one of an address."""
    servers = []

    def served(folder: Path) -> Callable[..., Answer]:
        server = watching.server(folder, 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

        def get(path: str, host: str = "") -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.request("GET", path, headers={"Host": host} if host else {})
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, text

        get.port = server.server_port  # type: ignore[attr-defined]
        return get

    yield served
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_run_that_trains_shows_how_far_it_is_and_what_it_wrote_last(tmp_path, serve):
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    (run / "times.csv").write_text(
        "time/tokens_per_second,time/sampling,time/update,time/memory_gib\n1000,0.5,1.25,1.5\n"
    )
    record = {"prompt": "Say <b>no</b>", "completion": "<script>alert(1)</script>", "reward": 0.25}
    (run / "rollouts.jsonl").write_text(json.dumps(record) + '\n{"half a li')
    get = serve(run)
    status, page = get("/")
    assert status == 200
    outline = Outline(page)
    assert outline.problems == [] and outline.open == []
    assert "Training: " in outline.words and "1,000 tokens a second" in outline.words
    assert "update 1.2 s" in outline.words and "1.5 GiB" in outline.words
    assert "&lt;script&gt;alert(1)" in page and "reward 0.250" in outline.words
    assert not (run / "report.html").exists()

    before = get("/version")
    assert before == (200, page.partition('data-version="')[2].partition('"')[0])
    with (run / "progress.csv").open("a") as file:
        file.write("\n")
    after = get("/version")
    assert after != before and after[1] in get("/")[1]


def test_nothing_but_its_pages_is_served_and_only_to_this_machine(tmp_path, serve):
    get = serve(make_run(tmp_path / "run"))
    for path in ("/config.yaml", "/../run/config.yaml", "/cells/", "/x/version", "/runs/"):
        assert get(path)[0] == 404
    assert get("/", host="evil.example")[0] == 403
    assert get("/", host=f"localhost:{get.port}")[0] == 200


def test_a_run_of_before_is_shown(tmp_path, serve):
    run = next(folder for folder in sorted((make.HERE / "finished").iterdir()) if folder.is_dir())
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    status, page = serve(copy)("/")
    assert status == 200 and "Ended: " in Outline(page).words
    assert "Before and after" in page


def test_a_comparison_shows_its_runs_and_then_its_findings(tmp_path, serve):
    comparison = tmp_path / "comparison"
    comparison.mkdir()
    write_page(comparison, results())
    make_run(comparison / "cells" / "alpha=0" / "seed-0")
    get = serve(comparison)
    assert 'href="runs/"' in get("/")[1] and "comparison" in get("/")[1]
    status, runs = get("/runs/")
    assert status == 200 and 'href="../cells/alpha=0/seed-0/"' in runs
    status, cell = get("/cells/alpha=0/seed-0/")
    assert status == 200 and "run report" in cell
    (comparison / "results.json").unlink()
    assert "0 of 1 runs" in Outline(get("/")[1]).words


def test_a_folder_of_nothing_and_a_port_that_is_taken_are_refused_in_one_line(tmp_path, serve):
    with pytest.raises(CheckpointError, match="give the folder of a run"):
        watching.server(tmp_path, 0)
    run = make_run(tmp_path / "run")
    port = serve(run).port
    with pytest.raises(SettingError, match=f"--port: {port} does not work; another program listens there"):
        watching.server(run, port)


def test_ctrl_c_ends_it(tmp_path):
    run = make_run(tmp_path / "run")
    command = [sys.executable, "-m", "rlgkd.scripts", "watch", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "rlgkd: stopped\n")


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_it_looks_for_news_and_writes_nothing_to_the_console(tmp_path, serve, width):
    get = serve(make_run(tmp_path / "run"))
    document, console = browse(f"http://127.0.0.1:{get.port}/", tmp_path / "profile", width=width)
    assert console == []
    assert "up to date" in document
