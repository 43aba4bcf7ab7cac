"""`rlgkd list`: short, searchable, and without importing what it lists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlgkd.errors import SettingError
from rlgkd.scripts import listing


def lines(capsys: pytest.CaptureFixture[str], *given: str) -> list[str]:
    listing.show(given[0] if given else "", given[1:])
    return capsys.readouterr().out.splitlines()


def test_the_kinds_come_first_each_with_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys)
    assert len(printed) == len(listing.KINDS) + 2
    numbers = {line.split()[0]: int(line.split()[1]) for line in printed[: len(listing.KINDS)]}
    assert numbers == {kind: len(listing.entries(kind)) for kind in listing.KINDS}


def test_a_kind_is_a_line_for_each_and_words_search_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(lines(capsys, "recipes")) == len(listing.entries("recipes"))
    assert [line.split()[0] for line in lines(capsys, "recipes", "agent GRPO", "2402.03300")] == ["grpo"]
    found = lines(capsys, "reverse_kl")
    assert {"settings:", "recipes:", "divergences:"} <= {*found} and "models:" not in found


def test_what_is_nowhere_is_refused_with_the_nearest_kind() -> None:
    with pytest.raises(SettingError, match=r"'recipe zzz' does not work.*did you mean 'recipes'"):
        listing.show("recipe", ["zzz"])


def test_a_terminal_gets_lines_of_its_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printed = lines(capsys, "settings")
    assert max(map(len, printed)) == 60 and len(printed) == len(listing.entries("settings"))
    whole = lines(capsys, "settings", "reward_timeout")
    assert max(map(len, whole)) <= 60 and "None waits for ever" in " ".join(" ".join(whole).split())


def test_listing_imports_nothing_heavy() -> None:
    """Importing torch alone takes a second."""
    code = (
        "import sys\nfrom rlgkd.scripts import listing\nlisting.show()\n"
        "for kind in listing.KINDS: listing.show(kind)\nprint('\\n', *{name.partition('.')[0] for name in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "stable_baselines3", "scipy"} & set(found.stdout.splitlines()[-1].split())
