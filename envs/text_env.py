"""The scalar environment: one episode, one token a step, Gymnasium's API."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rlgkd.envs.episodes import Episodes
from rlgkd.envs.task import TextTask
from rlgkd.envs.task_makers import build_task
from rlgkd.types import Task


class TextGenerationEnv(gym.Env[np.ndarray, np.int64]):
    """Generates a text token by token; the reward comes with the last token.

    Observation: int64 [max_prompt_tokens + max_new_tokens], the tokens so far padded with -1. Action: a token id.
    `reset(seed=s)` begins the stream of items that s orders; each later reset takes its next one, and
    `reset(options={"index": i})` jumps to item i. The info of a reset names the item; the info of the last step holds
    the text, the stop reason and the reward's parts. When an episode is `truncated`: see rlgkd.envs.episodes.
    """

    # Gymnasium warns if no render_fps is declared, whatever the mode; a frame is a token.
    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium declares a plain dict

    task: Task
    """The prompts, tokenizer, limits and reward."""
    split: str
    """The split that the episodes are from."""

    def __init__(
        self, task: Task | str | None = None, *, split: str = "train", render_mode: str | None = None, **settings: Any
    ) -> None:
        """Make the environment from a task, a task's import path, or the settings of `TextTask` (prompts, reward)."""
        self.task = build_task(task, TextTask, **settings)
        self.split = split
        self.render_mode = render_mode
        self._episodes = Episodes(self.task, split, 1)
        self.observation_space = self._episodes.observation_space
        self.action_space = self._episodes.action_space
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next item, or the first of the stream that `seed` orders."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._episodes.seed(0, int(self.np_random.integers(2**31)) if seed is None else seed)
            self._seeded = True
        info = self._episodes.reset(0, options)
        return self._observation(), info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append one token."""
        outcome = self._episodes.step([0], np.asarray([action])).get(0)
        if outcome is None:
            return self._observation(), 0.0, False, False, {}
        return self._observation(), outcome.reward, not outcome.truncated, outcome.truncated, outcome.info

    def action_masks(self) -> np.ndarray:
        """bool [V]: which tokens the task's mask allows next."""
        allowed_V: np.ndarray = self._episodes.action_masks()[0]
        return allowed_V

    def render(self) -> str:
        """Return the text so far, special tokens shown."""
        tokens = self._episodes.tokens_NT[0, : self._episodes.length_N[0]]
        return str(self.task.tokenizer.decode(tokens.tolist()))

    def _observation(self) -> np.ndarray:
        return np.array(self._episodes.tokens_NT[0])
