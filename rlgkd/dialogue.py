"""How an episode goes on when a turn has been written: the one rule that rollouts and environments share.

A turn ends with the end token, or a stop string where the task has any (`stops`). The task may then answer with tokens
of its own, which are no actions, and the policy writes another turn behind them; where it does not, the episode is
over. Nearly all tasks have one turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlgkd.lm.model import end_token
from rlgkd.lm.stop_strings import StopStrings
from rlgkd.types import Item, Score, StopReason, Task


class Dialogue:
    """The turns of one episode so far."""

    def __init__(self, task: Task, item: Item) -> None:
        """Begin with the policy's first turn."""
        self.task, self.item = task, item
        self.turns: list[str] = []
        self.room = task.max_new_tokens
        """Tokens that still fit behind what is written."""
        self.stop: StopReason | None = None
        """None while the episode goes on."""

    def take(self, ids: Sequence[int]) -> list[int]:
        """Take the turn that the policy wrote; returns the environment's answer, empty where the episode is over.

        A turn without end token or stop string has reached the limit. An answer behind which not one token would fit is
        not given.
        """
        self.turns.append(self.task.decode_completion(ids))
        self.room -= len(ids)
        at_limit = StopReason.TRUNCATED if self.task.at_limit == "truncate" else StopReason.LENGTH
        closed, stops = ids[-1] == end_token(self.task.tokenizer), stops_of(self.task)
        if not closed and (stops is None or not stops.should_stop(ids)):
            self.stop = at_limit
            return []
        text = self.task.reply(self.item, self.turns)
        given = {} if closed else {"closed": False}  # a task without stop strings need not know of it
        answer = [] if text is None else self.task.encode_reply(text, **given)
        if text is None or not answer:
            self.stop = StopReason.END
            return []
        if len(answer) >= self.room:
            self.stop = at_limit
            return []
        self.turns.append(text)
        self.room -= len(answer)
        return answer

    def close(self) -> None:
        """End behind the policy's latest turn, whatever the task answered to it."""
        self.turns, self.stop = self.turns[:-1], StopReason.END

    @property
    def text(self) -> str:
        """Of the policy's latest turn."""
        return self.turns[-1 if self.stop else -2]

    @property
    def several(self) -> tuple[str, ...]:
        """All turns, or none where there was but one."""
        return tuple(self.turns) if len(self.turns) > 1 else ()


def stops_of(task: Task) -> StopStrings | None:
    """The task's stop strings; None where it has none."""
    return getattr(task, "stops", None)


def grade(dialogues: Sequence[Dialogue], ids: Sequence[Sequence[int]]) -> list[Score]:
    """The scores of finished episodes, whose actions are `ids`, in one call of the reward; NaN where one was cut."""
    scores = [Score(reward=math.nan)] * len(dialogues)
    ended = [row for row, d in enumerate(dialogues) if d.stop is not StopReason.TRUNCATED]
    if ended:
        some = [dialogues[row] for row in ended]
        given = some[0].task.score(
            [d.item for d in some], [d.text for d in some], turns=[d.turns for d in some], ids=[ids[r] for r in ended]
        )
        for row, score in zip(ended, given, strict=True):
            scores[row] = score
    return scores
