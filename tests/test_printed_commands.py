"""README, docs and `--help` agree: commands, options, settings and recipes that the pages print are those that there
are, and the quickstart and the comparison find what the README's tables say.

The two trainings take a minute and some six of a core: `RLGKD_MINUTES=1 scripts/test tests/test_printed_commands.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from on_request import minutes
from printed import ROOT

from rlgkd.scripts.cli import app, main
from rlgkd.scripts.config.recipes import recipe_names
from rlgkd.scripts.config.run import setting_names

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWN_SETTINGS = {"docs/mathematics.md": {"sharp"}}
"""Parameters of functions that a page itself defines."""


def printed_commands(page: str) -> Iterator[list[str]]:
    """The words of each command of a page, in blocks and in lines of text, without comments."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?:    |\$ )?(rlgkd [a-z]+ ?.*)$|`(rlgkd [a-z]+ ?[^`]*)`", text, re.MULTILINE):
        command = re.sub(r"\s#.*", "", line[0] or line[1])
        try:
            yield shlex.split(command)[1:]
        except ValueError:  # a quotation that the line of text breaks
            continue


def test_the_readme_lists_every_command_with_options_that_help_has() -> None:
    block = (ROOT / "README.md").read_text().partition("## From the command line\n")[2].partition("\n[docs/")[0]
    assert {line.split()[1] for line in block.splitlines() if line.startswith("    rlgkd ")} == COMMANDS.keys()


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_commands_are_those_that_there_are(page: str) -> None:
    known = {*setting_names(), "env", *OWN_SETTINGS.get(page, ())}
    for name, *words in printed_commands(page):
        if name not in COMMANDS:
            continue  # "rlgkd is ..."
        options = {
            option for parameter in COMMANDS[name].params for option in [*parameter.opts, *parameter.secondary_opts]
        }
        for word in words:
            option = re.fullmatch(r"\[?(--[a-z][a-z-]*).*", word)
            assert option is None or option[1] in options, (name, word)
            setting = re.match(r"([a-z_]+)=", word)
            if setting and name in ("train", "compare", "teach", "check"):
                assert setting[1] in known, (name, word)
        recipe = words[0] if words and re.fullmatch(r"[a-z][a-z-]+", words[0]) else None
        assert name not in ("train", "compare") or recipe is None or recipe in recipe_names(), (name, recipe)


Row = tuple[str, list[str]]


def table_under(heading: str) -> dict[str, list[str]]:
    """The first table of the README after these words: the cells of each row by its first one."""
    rest = (ROOT / "README.md").read_text().partition(heading)[2]
    lines = rest[rest.index("\n| ") :].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {first: cells for first, *cells in rows if first != "---"}


def number(text: str) -> float:
    """The first number of a cell; a percentage as a share."""
    found = re.match(r"\+?(-?[\d.]+)(%| points)?", text)
    assert found, text
    return float(found[1]) / (100 if found[2] else 1)


def interval(text: str) -> tuple[float, float]:
    """A cell's 95% interval."""
    low, high = re.search(r"\(([-\d.]+) to ([-\d.]+)\)", text).groups()  # type: ignore[union-attr]
    unit = 100 if "points" in text else 1
    return float(low) / unit, float(high) / unit


QUICKSTART = {
    "reward: entailment by the learned classifier": "reward",
    "truth, by the exact oracle that training never sees": "truth",
    "coverage of the facts": "coverage",
    "ROUGE-2 against the reference": "rouge2",
    "reverse KL to the teacher, nats/token": "reverse_kl",
}


def quickstart(out: Path, *settings: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["train", "quickstart", "--out", str(out), *settings])
    assert not left.value.code
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.slow
def test_start_and_teacher_of_the_quickstart_are_those_of_the_readme(tmp_path: Path) -> None:
    table = table_under("What `./scripts/quickstart` printed")
    summary = quickstart(tmp_path / "run", "tokens=1")
    for row, name in QUICKSTART.items():
        before, _, teacher, _ = map(number, table[row])
        assert summary["before"][name]["mean"] == pytest.approx(before, abs=6e-4), name
        assert summary["teacher_scores"][name]["mean"] == pytest.approx(teacher, abs=6e-4), name


@minutes
@pytest.mark.timeout(1800)
def test_the_quickstart_finds_what_the_readme_says(tmp_path: Path) -> None:
    table = table_under("What `./scripts/quickstart` printed")
    summary = quickstart(tmp_path / "run")
    for row, name in QUICKSTART.items():
        low, high = interval(table[row][3])
        assert low <= summary["change"][name]["mean"] <= high, name


COMPARED = {"reward": "reward", "ROUGE-2": "rouge2", "tokens of a text": "length"}


@minutes
@pytest.mark.timeout(3600)
def test_the_comparison_finds_what_the_readme_says(tmp_path: Path) -> None:
    """A mean is that of the README within both intervals: training differs in its last bits between machines."""
    rows = table_under("`rlgkd compare` without arguments")
    columns = [re.sub(r",.*", "", cell) for cell in rows.pop("")]
    with pytest.raises(SystemExit) as left:
        main(["compare", "--out", str(tmp_path / "out")])
    assert not left.value.code
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {cell["name"].replace("=", " "): cell["scores"] for cell in results["cells"]}
    found |= {name: one["scores"] for name, one in results["references"].items()}
    for row, cells in rows.items():
        for column, cell in zip(columns, cells, strict=True):
            score = found[column][COMPARED[row]]
            digits = len(cell.partition(".")[2])
            rounding = 0.5 * 10**-digits
            low, high = interval(cell) if "(" in cell else (number(cell) - rounding, number(cell) + rounding)
            assert max(low, score["low"]) <= min(high, score["high"]), (row, column)
