"""How an episode continues after a turn: the one rule that rollouts and environments share.

A turn ends with an end token, or with a stop string if the task has any (`stops`). The task may then reply with tokens
of its own, which are not actions, and the policy takes another turn; if it does not reply, the episode is over. Nearly
all tasks have one turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlgkd.lm.stop_strings import StopStrings
from rlgkd.lm.text_format import end_token
from rlgkd.types import Item, StopReason, Task


class Dialogue:
    """The turns of one episode so far."""

    def __init__(
        self, task: Task, item: Item, *, single_turn: bool = False, end_ids: frozenset[int] | None = None
    ) -> None:
        """Begin with the policy's first turn, the only one if `single_turn`; `end_ids` None takes the task's."""
        self.task, self.item, self.single_turn = task, item, single_turn
        self.end_ids = task_end_ids(task) if end_ids is None else end_ids
        self.turns: list[str] = []
        self.room = task.max_new_tokens
        """Tokens that still fit below the length limit."""
        self.stop: StopReason | None = None
        """None while the episode continues."""

    def take_turn(self, ids: Sequence[int]) -> list[int]:
        """Record the policy's turn and return the tokens of the environment's reply, empty if the episode is over.

        A turn without end token or stop string has reached the length limit. A reply that would leave the policy no
        room for a token is not given.
        """
        self.turns.append(self.task.decode_completion(ids))
        self.room -= len(ids)
        at_limit = StopReason.TRUNCATED if self.task.at_limit == "truncate" else StopReason.LENGTH
        stops = stop_strings(self.task)
        closed = ids[-1] in self.end_ids
        if not closed and (stops is None or not stops.should_stop(ids)):
            self.stop = at_limit
            return []
        text = None if self.single_turn else self.task.reply(self.item, self.turns)
        unclosed = {} if closed else {"closed": False}  # a task without stop strings need not take the argument
        reply = [] if text is None else self.task.encode_reply(text, **unclosed)
        if text is None or not reply:
            self.stop = StopReason.END
            return []
        if len(reply) >= self.room:
            self.stop = at_limit
            return []
        self.turns.append(text)
        self.room -= len(reply)
        return reply

    def drop_last_reply(self) -> None:
        """End the episode before the policy's next turn: the environment's last reply, which nobody answers, goes."""
        self.turns, self.stop = self.turns[:-1], StopReason.END

    @property
    def text(self) -> str:
        """The policy's latest turn."""
        return self.turns[-1 if self.stop else -2]

    @property
    def all_turns(self) -> tuple[str, ...]:
        """All turns, or none if there is only one."""
        return tuple(self.turns) if len(self.turns) > 1 else ()


def task_end_ids(task: Task) -> frozenset[int]:
    """The ids that end a turn; of a task that names none, its tokenizer's."""
    return getattr(task, "end_ids", None) or frozenset({end_token(task.tokenizer)})


def end_ids_of(task: Task, model_end_ids: frozenset[int]) -> frozenset[int]:
    """The ids that end a turn of a model in a task: those of both, or the task's alone if it names all of them."""
    own = task_end_ids(task)
    return own if getattr(task, "names_end_ids", False) else model_end_ids | own


def ending_with(task: Task, end_ids: frozenset[int]) -> Task:
    """The task as it reads and writes texts that end with these tokens too; itself where that is no other one."""
    view: Task = task.with_end_ids(end_ids) if hasattr(task, "with_end_ids") else task
    return view


def stop_strings(task: Task) -> StopStrings | None:
    """The task's stop strings; None if it has none."""
    return getattr(task, "stops", None)
