"""The dynamics of writing text: rows of tokens that grow in lockstep until each ends. Every environment is a view of it.

The scalar environment is one row, the vector environments are many; none holds a rule of its own. An observation is
the tokens so far, padded on the right with `PAD` (-1, which is no token, so an end token that doubles as padding
stays visible). An episode ends when the end token is written or the length limit reached; both are terminations: the
text is scored as it stands and nothing is bootstrapped.

An episode's item is a function of (seed, index): seeding a row sets its index to 0, each later reset adds 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rlgkd.errors import SettingError
from rlgkd.types import Item, Score, StopReason, Task

PAD = -1


class Episodes:
    """`num` rows over one task's split. Rows are addressed by index lists, so views choose when each resets."""

    def __init__(self, task: Task, split: str, num: int) -> None:
        """Make the rows; each must be seeded and begun before it is stepped."""
        self.task, self.split, self.num = task, split, num
        self.width = task.max_prompt_tokens + task.max_new_tokens
        self.vocabulary = len(task.tokenizer)
        self.end = task.tokenizer.eos_token_id
        self.tokens_NT = np.full((num, self.width), PAD, dtype=np.int64)
        self.length_N = np.zeros(num, dtype=np.int64)
        self.prompt_N = np.zeros(num, dtype=np.int64)
        self.seed_N = [0] * num
        self.cursor_N = [0] * num
        self.items: list[Item | None] = [None] * num

    @property
    def observation_space(self) -> gym.spaces.Box:
        """[max_prompt_tokens + max_new_tokens] token ids, padded with -1."""
        return gym.spaces.Box(PAD, self.vocabulary - 1, (self.width,), np.int64)

    @property
    def action_space(self) -> gym.spaces.Discrete[np.int64]:
        """One token of the tokenizer's vocabulary."""
        return gym.spaces.Discrete(self.vocabulary)

    def seed(self, row: int, seed: int, index: int = 0) -> None:
        """Give a row its stream of items and where in it to begin."""
        self.seed_N[row], self.cursor_N[row] = seed, index

    def begin(self, row: int) -> dict[str, Any]:
        """Put the row's next prompt in place; returns the reset's info."""
        item = self.task.item(self.split, self.seed_N[row], self.cursor_N[row])
        self.cursor_N[row] += 1
        prompt = self.task.encode_prompt(item)
        self.items[row] = item
        self.tokens_NT[row] = PAD
        self.tokens_NT[row, : len(prompt)] = prompt
        self.length_N[row] = self.prompt_N[row] = len(prompt)
        return {"key": item.key, "prompt": item.prompt, "reference": item.reference}

    def step(self, rows: Sequence[int], actions: np.ndarray) -> dict[int, tuple[Score, dict[str, Any]]]:
        """Write one token in each of `rows`; returns score and info of those that end by it, scored in one call.

        Raises: SettingError for an action that is no token; AssertionError for a row that has ended.
        """
        rows_R = np.asarray(rows, dtype=np.int64)
        actions_R = np.asarray(actions)
        if ((actions_R < 0) | (actions_R >= self.vocabulary)).any():
            raise SettingError("action", actions_R.tolist(), f"give tokens in [0, {self.vocabulary - 1}]")
        assert all(self.items[row] is not None for row in rows), "step after the end; call reset first"
        self.tokens_NT[rows_R, self.length_N[rows_R]] = actions_R
        self.length_N[rows_R] += 1
        ended_R = actions_R == self.end
        limit_R = self.length_N[rows_R] - self.prompt_N[rows_R] >= self.task.max_new_tokens
        over = [int(row) for row in rows_R[ended_R | limit_R]]
        if not over:
            return {}
        items = [item for row in over if (item := self.items[row]) is not None]
        texts = [self.task.decode_completion(self.completion(row)) for row in over]
        reasons = [StopReason.END if self.completion(row)[-1] == self.end else StopReason.LENGTH for row in over]
        scores = self.task.score(items, texts)
        for row in over:
            self.items[row] = None
        return {
            row: (score, {"key": item.key, "text": text, "stop": str(reason), "parts": dict(score.parts)})
            for row, item, text, reason, score in zip(over, items, texts, reasons, scores, strict=True)
        }

    def completion(self, row: int) -> list[int]:
        """What has been written in the row so far."""
        written: list[int] = self.tokens_NT[row, self.prompt_N[row] : self.length_N[row]].tolist()
        return written
