"""What the command line says of an error: one line, and where the traceback of the user's own code is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from rlgkd.errors import RewardError
from rlgkd.scripts import cli, train


def test_a_rewards_failure_is_one_line_and_its_traceback_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*given: Any, **settings: Any) -> Path:
        try:
            raise LookupError("no such page")
        except LookupError as error:
            raise RewardError("reward", "64 of 64 samples failed", "mend it") from error

    monkeypatch.setattr(train, "start", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")  # main would leave its own behind
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "quickstart"])
    (file,) = tmp_path.iterdir()
    said = f"rlgkd: reward: '64 of 64 samples failed' does not work; mend it; its traceback: {file}\n"
    assert (left.value.code, capsys.readouterr().err) == (2, said)
    assert "Traceback" in file.read_text() and "LookupError: no such page" in file.read_text()
