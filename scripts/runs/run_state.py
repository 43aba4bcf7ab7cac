"""What moves during a run besides its agent: how far its held-out evaluations have come, and the best of them.

Values alone, and functions from one to the next. A checkpoint holds them as JSON, next to the agent's TrainingState,
and a resumed run goes on from them; nothing else remembers an evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.runs.goal import Goal

OF_THE_MEASURE: Final = ("keep_best", "eval_every_prompts", "eval_every_split", "eval_seed", "teacher", "temperature")
"""Settings without which a value of before cannot be compared with one of today; with those of the environment."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best value of a measure, and where it was measured."""

    value: float
    updates: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A measure over the evaluations of a run."""

    best: Best | None = None
    since: int = 0
    """Evaluations since the best one."""

    def then(self, value: float, goal: Goal, *, updates: int, tokens: int) -> Self:
        """After one more evaluation. A value that is not finite is no better."""
        if goal.better(value, None if self.best is None else self.best.value):
            return dataclasses.replace(self, best=Best(value=value, updates=updates, tokens=tokens), since=0)
        return dataclasses.replace(self, since=self.since + 1)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a checkpoint holds of a run besides its agent."""

    evaluations: int = 0
    """Rows of evaluations.csv."""
    evaluated: int | None = None
    """Tokens at the newest of them; None before the first."""
    watched: Watched = Watched()
    """The measure of `keep_best`."""

    def due(self, tokens: int, every: int) -> bool:
        """Whether it is time to evaluate: before training, and whenever a multiple of `every` tokens was passed."""
        return every > 0 and (self.evaluated is None or tokens // every > self.evaluated // every)

    def out_of_patience(self, patience: int) -> bool:
        """Whether so many evaluations in a row were no better; never with 0."""
        return 0 < patience <= self.watched.since

    def after_evaluation(self, value: float | None, goal: Goal | None, *, updates: int, tokens: int) -> Self:
        """After an evaluation, in which the goal's measure had this value, if there is a goal."""
        watched = self.watched
        if goal is not None and value is not None:
            watched = watched.then(value, goal, updates=updates, tokens=tokens)
        return dataclasses.replace(self, evaluations=self.evaluations + 1, evaluated=tokens, watched=watched)

    def after_changes(self, settings: Collection[str]) -> Self:
        """With these settings changed: a best value that cannot be compared any more is forgotten."""
        if any(name in OF_THE_MEASURE or name.startswith("env_settings.") for name in settings):
            return dataclasses.replace(self, evaluated=None, watched=Watched())
        return self

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values; `from_json` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The state that `to_json` gave.

        Raises: TypeError, ValueError, KeyError or AttributeError for values that `to_json` does not give.
        """
        watched = dict(values.get("watched", {}))
        best = watched.get("best")
        state = cls(**{**values, "watched": Watched(**{**watched, "best": None if best is None else Best(**best)})})
        counts = [state.evaluations, state.watched.since, 0 if state.evaluated is None else state.evaluated]
        if state.watched.best is not None:
            counts += [state.watched.best.updates, state.watched.best.tokens]
            if type(state.watched.best.value) not in (int, float):
                raise ValueError(f"its best value is {state.watched.best.value!r}")
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"its counts are {counts}")
        return state


@dataclass(frozen=True, kw_only=True)
class Rewound:
    """What a run goes on with, besides its agent."""

    history: list[Change] = dataclasses.field(default_factory=list)
    """Settings that have changed since the run began."""
    state: RunState = dataclasses.field(default_factory=RunState)
