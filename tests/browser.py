"""Opens pages in a browser, for the tests of the reports."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on the PATH; on Debian: apt-get install chromium"
)


class Outline(HTMLParser):
    """Every tag that a page opens, and the text between tags."""

    # Elements without an end tag.
    VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.problems: list[str] = []
        """End tags that do not match; a well-formed page has none and leaves nothing open."""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.problems.append(f"</{tag}> where {self.open[-1:]} is open, line {self.getpos()[0]}")

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        """The text with runs of white space as one space."""
        return " ".join(self.text.split())


def assert_valid_and_self_contained(page: str) -> None:
    """Check that a page is well-formed, accessible, and needs no network."""
    outline = Outline(page)
    assert outline.problems == [] and outline.open == []
    assert all("scope" in attributes for tag, attributes in outline.tags if tag == "th")
    plots = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {name for _, attributes in outline.tags for name in (attributes.get("aria-labelledby") or "").split()}
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', page))
    assert named | used <= set(ids)
    for _, attributes in outline.tags:
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert [tag for tag, _ in outline.tags].count("script") == 1
    assert "url(http" not in page and "@import" not in page and "<dc:date" not in page
    assert "#0a0b0" not in page  # a colour that did not become a variable of the page
    assert not any(re.search(r"\bnan\b", plot) for plot in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))


def browse(page: Path | str, profile: Path, fragment: str = "", width: int = 1280) -> tuple[str, list[str]]:
    """Return the document of a file or an address after the scripts ran, and what was written to the console."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        "--dump-dom",
        f"{page if isinstance(page, str) else page.as_uri()}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=250, encoding="utf-8", errors="replace")
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def in_frame(page: str, width: int, script: str) -> str:
    """Return a page that shows another in a frame of this width, and runs a script on its document `seen`.

    A window is at least 500 pixels wide; a frame is as narrow as it is made.
    """
    return (
        f'<!doctype html><iframe style="width:{width}px;height:844px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        "<script>addEventListener('load', () => setTimeout(() => {"
        f"const seen = document.querySelector('iframe').contentDocument; {script}"
        "}, 500))</script>"
    )


def title_of(document: str) -> str:
    """Return a document's title."""
    found = re.search("<title>(.*?)</title>", document)
    assert found is not None
    return found[1]
