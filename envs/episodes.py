"""The dynamics of text episodes: rows of tokens that grow in lockstep until each ends. Environments are views of it.

The scalar environment is one row, the vector environments are many; none has a rule of its own. An observation is the
tokens so far, padded on the right with `PAD` (-1, which is no token, so an end token that doubles as padding stays
visible). A turn ends with an end token or a stop string. If the task then replies, the reply's tokens stand in the
next observation and the policy's next turn follows them; otherwise the episode is over.

How the length limit ends an episode is the task's `at_limit`: `terminate` scores the text as it stands, and there is
nothing to bootstrap; `truncate` cuts it off unscored: the reward is 0 and `truncated` is True, so that an actor-critic
puts the value of the last state there. A reward that failed is shown in the same way, with `reward_failed` in the
info: another library's update takes no NaN, and a 0 that counts would be a score.

An episode's item is a function of (seed, index): seeding a row sets its index to 0, each reset adds 1.

Dimensions: N rows, R the rows of one call, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rlgkd import scoring
from rlgkd.dialogue import Dialogue, stop_strings, task_end_ids
from rlgkd.errors import SettingError
from rlgkd.ops.token_masks import allowed_tokens
from rlgkd.types import Score, StopReason, Task

PAD = -1


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    reward: float
    truncated: bool
    info: dict[str, Any]
    """The info of its last step."""


class Episodes:
    """`num` rows over one task's split. Every method takes the rows it acts on, so each view resets rows in its way."""

    def __init__(self, task: Task, split: str, num: int) -> None:
        """Make the rows; each must be seeded and reset before it is stepped.

        Raises: SettingError for fewer than one row; DataError for a split that the task does not have.
        """
        if num < 1:
            raise SettingError("num_envs", num, "give 1 or more")
        task.size(split)
        self.task = task
        self.split = split
        self.num = num
        self.width = task.max_prompt_tokens + task.max_new_tokens
        self.vocabulary = len(task.tokenizer)
        self.stops = stop_strings(task)
        self.tokens_NT = np.full((num, self.width), PAD, dtype=np.int64)
        self.action_NT = np.zeros((num, self.width), dtype=bool)
        self.length_N = np.zeros(num, dtype=np.int64)
        self.prompt_N = np.zeros(num, dtype=np.int64)
        self.turn_N = np.zeros(num, dtype=np.int64)
        """The column at which the policy's current turn began."""
        self.seed_N = [0] * num
        self.next_index_N = [0] * num
        self.dialogues: list[Dialogue | None] = [None] * num
        """None for a row whose episode has ended or not begun."""

    @property
    def observation_space(self) -> gym.spaces.Box:
        """[max_prompt_tokens + max_new_tokens] token ids, padded with -1."""
        return gym.spaces.Box(PAD, self.vocabulary - 1, (self.width,), np.int64)

    @property
    def action_space(self) -> gym.spaces.Discrete[np.int64]:
        """One token of the tokenizer's vocabulary."""
        return gym.spaces.Discrete(self.vocabulary)

    def seed(self, row: int, seed: int) -> None:
        """Put a row at the start of the stream of items that `seed` orders."""
        self.seed_N[row] = int(seed)
        self.next_index_N[row] = 0

    def reset(self, row: int, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Begin the row's next item, or item `options["index"]` of its stream; return the info of the reset.

        Raises: SettingError for an index below 0; DataError for a prompt that does not fit.
        """
        if options and "index" in options:
            if options["index"] < 0:
                raise SettingError("index", options["index"], "give 0 or more")
            self.next_index_N[row] = int(options["index"])
        item = self.task.item(self.split, self.seed_N[row], self.next_index_N[row])
        self.next_index_N[row] += 1
        prompt = self.task.encode_prompt(item)
        self.dialogues[row] = Dialogue(self.task, item)
        self.tokens_NT[row] = PAD
        self.tokens_NT[row, : len(prompt)] = prompt
        self.length_N[row] = self.prompt_N[row] = self.turn_N[row] = len(prompt)
        self.action_NT[row] = False
        return {"key": item.key, "prompt": item.prompt, "reference": item.reference}

    def step(self, rows: Sequence[int], actions: np.ndarray) -> dict[int, Outcome]:
        """Append one token to each of `rows`; return the outcomes of the episodes that it ends, scored in one call.

        Raises: SettingError for actions that are not one token for each row; ResetNeeded for a row that has ended.
        """
        rows_R = np.asarray(rows, dtype=np.int64)
        actions_R = self._checked_actions(rows, actions)
        columns_R = self.length_N[rows_R]
        self.tokens_NT[rows_R, columns_R] = actions_R
        self.action_NT[rows_R, columns_R] = True
        self.length_N[rows_R] += 1
        at_limit_R = self.length_N[rows_R] - self.prompt_N[rows_R] >= self.task.max_new_tokens
        turn_over_R = np.isin(actions_R, list(task_end_ids(self.task))) | at_limit_R
        if self.stops is not None:
            turn_over_R |= [self.stops.should_stop(self.turn(row)) for row in rows]
        over: dict[int, Dialogue] = {}
        for row in rows_R[turn_over_R].tolist():
            dialogue = self._end_turn(row)
            if dialogue.stop is not None:
                over[row] = dialogue
                self.dialogues[row] = None
        if not over:
            return {}
        scores = scoring.score(self.task, [self._ended(row, dialogue) for row, dialogue in over.items()])
        return {row: _outcome(dialogue, score) for (row, dialogue), score in zip(over.items(), scores, strict=True)}

    def turn(self, row: int) -> list[int]:
        """Return the tokens of the policy's current turn so far."""
        tokens: list[int] = self.tokens_NT[row, self.turn_N[row] : self.length_N[row]].tolist()
        return tokens

    def actions(self, row: int) -> list[int]:
        """Return the actions of the row so far: the policy's tokens, in all its turns."""
        actions: list[int] = self.tokens_NT[row, self.action_NT[row]].tolist()
        return actions

    def action_masks(self) -> np.ndarray:
        """bool [N, V]: which tokens the task's mask allows next; all in rows that have ended, or without a mask."""
        allowed_NV = np.ones((self.num, self.vocabulary), dtype=bool)
        mask = getattr(self.task, "mask", None)
        running = [row for row, dialogue in enumerate(self.dialogues) if dialogue is not None]
        if mask is not None and running:
            with torch.no_grad():
                tokens_RT = torch.from_numpy(self.tokens_NT[running])
                allowed_NV[running] = allowed_tokens(mask, tokens_RT, self.vocabulary).cpu().numpy()
        return allowed_NV

    def _checked_actions(self, rows: Sequence[int], actions: np.ndarray) -> np.ndarray:
        """The actions as an array, if they are one token for each row and the rows are running."""
        actions_R = np.asarray(actions)
        if actions_R.shape != (len(rows),) or not np.issubdtype(actions_R.dtype, np.integer):
            shown = f"{actions_R.dtype} of shape {actions_R.shape}"
            raise SettingError("action", shown, f"give one integer for each of the {len(rows)} rows")
        outside_R = (actions_R < 0) | (actions_R >= self.vocabulary)
        if outside_R.any():
            raise SettingError("action", int(actions_R[outside_R][0]), f"give tokens in [0, {self.vocabulary - 1}]")
        if any(self.dialogues[row] is None for row in rows):
            raise gym.error.ResetNeeded("step: the episode has ended or not begun; call reset first")
        return actions_R

    def _end_turn(self, row: int) -> Dialogue:
        """Give the policy's turn to the row's dialogue, and append the environment's answer."""
        dialogue = self.dialogues[row]
        assert dialogue is not None
        answer = dialogue.take_turn(self.turn(row))
        self.turn_N[row] = self.length_N[row] + len(answer)
        self.tokens_NT[row, self.length_N[row] : self.turn_N[row]] = answer
        self.length_N[row] = self.turn_N[row]
        return dialogue

    def _ended(self, row: int, dialogue: Dialogue) -> scoring.Ended:
        """The parts of an ended episode that its task needs to score it."""
        assert dialogue.stop is not None
        return scoring.Ended(dialogue.item, dialogue.text, dialogue.turns, self.actions(row), dialogue.stop)


def _outcome(dialogue: Dialogue, score: Score) -> Outcome:
    info: dict[str, Any] = {
        "key": dialogue.item.key,
        "text": dialogue.text,
        "stop": str(dialogue.stop),
        "parts": dict(score.parts),
    }
    if dialogue.all_turns:
        info["turns"] = dialogue.turns
    unscored = math.isnan(score.reward)
    if unscored and dialogue.stop is not StopReason.TRUNCATED:
        info["reward_failed"] = True
    return Outcome(reward=0.0 if unscored else float(score.reward), truncated=unscored, info=info)
