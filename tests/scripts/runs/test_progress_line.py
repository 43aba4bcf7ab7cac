"""The live line of a terminal: the most important numbers stand on it whole, however narrow it is."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlgkd.scripts.runs.progress_line import cut_to_width, live_line
from rlgkd.scripts.runs.recorder import Recorder
from rlgkd.scripts.runs.stopping import StopRequest

PIECES = ["reward -12.345", "divergence 12.345", "update 1200", "12345 tokens/s", "length 123.4"]


@pytest.mark.parametrize(("width", "shown"), [(60, 2), (80, 3), (100, 5)])
def test_the_line_is_cut_between_its_pieces_and_fits_the_terminal(width: int, shown: int) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width)
    text = cut_to_width(PIECES, console)
    assert text == "  ".join(PIECES[:shown])
    progress = live_line(console, quiet=False)
    progress.add_task(text, total=100, completed=34)
    console.print(progress)
    assert text in output.getvalue() and "34%" in output.getvalue()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_training_shows_reward_and_divergence_first_and_in_a_log_all_of_it(quiet: bool) -> None:
    metrics = {
        "rollout/ep_rew_mean": 0.5124,
        "train/divergence": 0.3456,
        "rollout/ep_len_mean": 13.21,
        "time/tokens_per_second": 1234.0,
        "time/reward": 2.0,
    }
    output = io.StringIO()
    console = Console(file=output, force_terminal=not quiet, width=80)
    recorder = Recorder(SimpleNamespace(tokens=100), None, None, StopRequest(), quiet=quiet, console=console)  # type: ignore[arg-type]
    recorder.model = SimpleNamespace(last_metrics=metrics)  # type: ignore[assignment]
    recorder._show(120)
    console.print(recorder._line)
    if quiet:
        assert "1234 tokens/s  length 13.2  scoring 2.0 s\n" in output.getvalue()
    else:
        assert "reward 0.512  divergence 0.346  update 120  1234 tokens/s" in output.getvalue()
        assert "\N{HORIZONTAL ELLIPSIS}" not in output.getvalue()
    del metrics["train/divergence"]  # without a teacher there is none
    recorder._show(130)
    console.print(recorder._line)
    assert "nan" not in output.getvalue() and "update 130" in output.getvalue()
