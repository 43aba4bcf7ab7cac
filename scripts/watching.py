"""The live page of a run or a comparison: `rlgkd watch FOLDER`.

A server of the standard library on 127.0.0.1 renders the report from the folder's files when they have changed; the
page looks every three seconds whether they have. Nothing is written, no file of the folder is served, and a request
that names another host is refused, so that no page of the web can read it through the browser.
"""

from __future__ import annotations

import errno
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from rlgkd.errors import CheckpointError, SettingError, one_line
from rlgkd.scripts.comparison.html import comparison_page
from rlgkd.scripts.report.html import run_page, template_environment
from rlgkd.scripts.report.live import cells_of, is_comparison, progress_of, runs_of, version
from rlgkd.scripts.report.run_files import read_run

HOST: Final = "127.0.0.1"
RUNS: Final = "runs"
"""The address of a comparison's list of runs."""


class Pages:
    """The pages of a folder by address, each made again when its files have changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, tuple[str, bytes]] = {}
        self._lock = threading.Lock()
        """Matplotlib's settings are the process's: one page is drawn at a time."""

    def version(self, address: str) -> str | None:
        """The state of the files of the page at this address; None if there is no such page."""
        folder = self._folder_of(address)
        return None if folder is None else version(folder)

    def page(self, address: str) -> bytes | None:
        """The page at this address, such as "" or "cells/alpha=0/seed-0"; None if there is none."""
        with self._lock:
            now = self.version(address)
            if now is None:
                return None
            made, page = self._made.get(address, ("", b""))
            if made != now:
                page = self._render(address, now).encode("utf-8", errors="replace")
                self._made[address] = now, page
            return page

    def _folder_of(self, address: str) -> Path | None:
        if address == "" or (address == RUNS and is_comparison(self.folder)):
            return self.folder
        named = {run.relative_to(self.folder).as_posix(): run for run in runs_of(self.folder)}
        return named.get(address)

    def _render(self, address: str, now: str) -> str:
        folder = self._folder_of(address)
        assert folder is not None
        live: dict[str, Any] = {"version": now, "up": "", "up_name": "", "run": None}
        if not is_comparison(folder):
            files = read_run(folder)
            if address:
                live |= {"up": "../../../", "up_name": "the comparison"}
            return run_page(files, live=live | {"run": progress_of(folder, files)})
        finished = (folder / "results.json").exists() and (folder / "timing.json").exists()
        if finished and address == "":
            return comparison_page(folder, live=live | {"up": f"{RUNS}/", "up_name": "its runs"})
        if address == RUNS:
            live |= {"up": "../", "up_name": "the comparison"}
        cells = cells_of(folder, {run: read_run(run) for run in runs_of(folder)})
        return (
            template_environment()
            .get_template("live_comparison.html")
            .render(
                title=folder.name,
                cells=cells,
                done=sum(cell["state"] == "measured" for cell in cells),
                finished=finished,
                root="../" if address == RUNS else "",
                live=live,
            )
        )


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder's pages, not yet serving; port 0 takes any free one.

    Raises: CheckpointError if the folder holds neither a run nor a comparison; SettingError for a port that is taken.
    """
    folder = folder.absolute()
    if not (folder / "config.yaml").is_file() and not is_comparison(folder):
        raise CheckpointError("folder", str(folder), "give the folder of a run or of a comparison, which has begun")
    pages, hosts = Pages(folder), set[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host") not in hosts:
                self.answer(HTTPStatus.FORBIDDEN, "text/plain", b"this page is for the machine that it runs on")
                return
            path = unquote(urlsplit(self.path).path).removeprefix("/")
            address, _, last = path.rpartition("/")
            try:
                found = pages.page(address) if last == "" else None
                if last == "version" and (now := pages.version(address)) is not None:
                    found = now.encode()
            except Exception as error:  # files that are damaged in a way that nobody thought of: the page says so
                text = f"the page could not be made: {one_line(error, 300)}"
                self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", text.encode())
                return
            if found is None:
                self.answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page")
            else:
                self.answer(HTTPStatus.OK, "text/plain" if last else "text/html", found)

        def answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing of each request."""

    try:
        made = ThreadingHTTPServer((HOST, port), Handler)
        hosts |= {f"{name}:{made.server_port}" for name in (HOST, "localhost")}
        return made
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "another program listens there, maybe another rlgkd watch; give another, or 0 for any free one"
            raise SettingError("--port", port, remedy) from error
        raise SettingError("--port", port, f"{error.strerror}; give another, or 0 for any free one") from error
