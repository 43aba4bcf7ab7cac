"""The cost of a step of the vector environments, without the policy, in Gymnasium and in Stable-Baselines3.

Tokens are drawn at random. The best of several repeats counts, since a busy machine only adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rlgkd.envs.rewards.constant import no_reward
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.envs.task import TextTask
from rlgkd.envs.vector_env import TextVectorEnv
from rlgkd.errors import SettingError


def stepping(*, rows: int = 64, tokens: int = 512, repeats: int = 5) -> dict[str, float]:
    """Return the microseconds per row and step, of `rows` completions that reach the length limit of `tokens`.

    Raises: SettingError for a number below 1.
    """
    for field, value in (("rows", rows), ("tokens", tokens), ("repeats", repeats)):
        if value < 1:
            raise SettingError(field, value, "give 1 or more")
    task = TextTask(
        prompts=["The quick brown fox"],
        reward=no_reward,
        tokenizer="embedded:grounded-student",
        max_prompt_tokens=32,
        max_new_tokens=tokens,
    )
    draw = np.random.default_rng(0).integers(len(task.tokenizer) - 1, size=(tokens, rows))
    end = int(task.tokenizer.eos_token_id)
    actions_TN = np.where(draw >= end, draw + 1, draw)  # any token but the end token
    vector_env = TextVectorEnv(task, num_envs=rows)
    sb3_env = TextVecEnv(task, num_envs=rows)
    sb3_env.seed(0)
    return {
        "rows": rows,
        "tokens": tokens,
        "gymnasium_us": _best_microseconds(lambda: vector_env.reset(seed=0), vector_env.step, actions_TN, repeats),
        "sb3_us": _best_microseconds(sb3_env.reset, sb3_env.step, actions_TN, repeats),
    }


def _best_microseconds(
    reset: Callable[[], Any], step: Callable[[np.ndarray], Any], actions_TN: np.ndarray, repeats: int
) -> float:
    """Return the microseconds per row and step of the fastest repeat, with the scoring at the end."""
    seconds = []
    for _ in range(repeats):
        reset()
        start = time.perf_counter()
        for actions_N in actions_TN:
            step(actions_N)
        seconds.append(time.perf_counter() - start)
    return round(min(seconds) / actions_TN.size * 1e6, 3)
