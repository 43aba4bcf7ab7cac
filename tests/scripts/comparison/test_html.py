"""The page of a comparison: it shows its data, is valid, escapes hostile text, and works in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
import sample_comparison
from browser import Outline, assert_valid_and_self_contained, browse, in_frame, needs_browser, title_of

from rlgkd.scripts.comparison.view import comparison_view


def test_the_page_shows_its_data_and_is_valid(tmp_path: Path) -> None:
    found = sample_comparison.results((0, 0.5, 1))
    page = sample_comparison.write_page(tmp_path, found).read_text()
    assert_valid_and_self_contained(page)
    words = Outline(page).words
    view = comparison_view(found, {})
    for finding in view["findings"]:
        assert str(finding) in words
    for section in view["plots"].values():
        for panel in section:
            assert panel.svg in page and panel.label in words
    for table in (view["quality"], view["diversity"]):
        for row in table["rows"]:
            assert all(score["value"] in words and score["bounds"] in words for score in row["scores"])
    for table in view["changes"]:
        assert all(cell["probability"] in words for row in table["rows"] for cell in row["cells"])
    trained, requested = view["tokens_trained"], view["tokens_requested"]
    assert f"by GRPO for {trained} tokens ({requested} asked for; the last update is made whole)" in words
    assert "Curves are left out" not in words and "One seed" not in words and "Not finished" not in words


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    found = sample_comparison.results(updates=1)
    found["missing"] = ["alpha=0 seed 1"]
    found["seeds"] = [0]
    for cell in found["cells"]:
        for run in cell["runs"]:
            run["tokens"] = 300
    page = sample_comparison.write_page(tmp_path, found).read_text()
    assert_valid_and_self_contained(page)
    words = Outline(page).words
    assert "Curves are left out: they need two updates" in words
    assert "One seed" in words and "Not finished: alpha=0 seed 1" in words
    assert "by GRPO for 300 tokens, with" in words


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    found = sample_comparison.results()
    for run in (*(run for cell in found["cells"] for run in cell["runs"]), *found["references"].values()):
        run["texts"][0] |= {"text": "<script>1</script>", "prompt": "<img src=x>", "reference": "</div><script>"}
    found["name"] = "<script>alert(1)</script>"
    page = sample_comparison.write_page(tmp_path, found).read_text()
    assert_valid_and_self_contained(page)
    assert not [tag for tag, _ in Outline(page).tags if tag == "img"]


@needs_browser
@pytest.mark.parametrize(("width", "alphas"), [(400, (0, 0.25, 0.5, 1)), (1100, (0, 1))])
def test_a_table_that_is_wider_than_the_page_scrolls_by_itself_and_says_so(
    width: int, alphas: tuple[float, ...], tmp_path: Path
) -> None:
    page = sample_comparison.write_page(tmp_path / "out", sample_comparison.results(alphas)).read_text()
    frame = tmp_path / "frame.html"
    frame.write_text(
        in_frame(
            page,
            width,
            "const all = [...seen.querySelectorAll('.scroll')];"
            "document.title = [seen.documentElement.scrollWidth > seen.documentElement.clientWidth,"
            "all.filter(box => box.scrollWidth > box.clientWidth).length,"
            "all.filter(box => !box.previousElementSibling.hidden).length].join(' ');",
        ),
        encoding="utf-8",
    )
    document, console = browse(frame, tmp_path / "profile")
    tables = 4 if width == 400 else 0  # scores, changes from either end, diversity
    assert title_of(document) == f"false {tables} {tables}" and console == []
