"""The code blocks of docs/stable-baselines3.md run one after another, as printed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from printed import examples

PAGE = "docs/stable-baselines3.md"


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """Each block by the first name that it imports."""
    return {re.match(r"(?:from|import) ([\w.]+)", block)[1]: block for block in examples(PAGE)}


def run(*sources: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for source in sources:
        exec(compile(source, PAGE, "exec"), names)
    return names


@pytest.mark.slow
def test_stock_ppo_masks_and_the_teachers_reward_run_as_printed(blocks: dict[str, str], capsys) -> None:
    names = run(blocks["stable_baselines3"], blocks["rlgkd.lm.top_k_mask"], blocks["rlgkd.agents"])
    assert names["agent"].num_timesteps == 64 and len(capsys.readouterr().out.split()) >= 1


def test_maskable_ppo_learns_to_be_polite_as_printed(blocks: dict[str, str]) -> None:
    contrib = pytest.importorskip("sb3_contrib.common.maskable.evaluation", reason="pip install 'rlgkd[contrib]'")
    names = run("from rlgkd.ops.token_masks import transitions", blocks["sb3_contrib"])
    assert contrib.evaluate_policy(names["polite"], names["answers"], n_eval_episodes=40)[0] > 0.9


def test_a_loop_of_ones_own_runs_as_printed(blocks: dict[str, str]) -> None:
    names = run(blocks["gymnasium"])
    assert np.isfinite(float(names["loss"].detach()))


def test_no_block_is_left_out(blocks: dict[str, str]) -> None:
    assert set(blocks) == {"stable_baselines3", "rlgkd.lm.top_k_mask", "sb3_contrib", "rlgkd.agents", "gymnasium"}
