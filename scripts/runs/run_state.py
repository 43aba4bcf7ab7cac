"""What moves during a run besides its agent: its held-out evaluations, the best of them, and its stage.

Values alone, and functions from one to the next. A checkpoint holds them as JSON, next to the agent's TrainingState,
and a resumed run goes on from them; nothing else remembers an evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Self

from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.runs.goal import Goal
from rlgkd.scripts.runs.overfitting import TrainingRewards
from rlgkd.statistics import Interval

OF_THE_MEASURE: Final = (
    "keep_best",
    "eval_every_prompts",
    "eval_every_split",
    "eval_seed",
    "teacher",
    "teacher_temperature",
    "teacher_dtype",
    "teacher_quantization",
    "teacher_prompt",
    "teacher_column",
    "teacher_mix",
    "teacher_weights",
    "reference_model",
    "extrapolation",
    "temperature",
)
"""Settings without which a value of before cannot be compared with one of today; with those of the environment."""
NONE_UNKNOWN: Final[Mapping[str, Sequence[int]]] = MappingProxyType({})
"""That every measure is known at every prompt."""


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
    unknown: tuple[int, ...] = ()
    """Numbers of the prompts at which the best value is not known, such as those whose reward failed."""

    def then(self, value: float, goal: Goal, *, unknown: Sequence[int] = (), updates: int, tokens: int) -> Self:
        """After one more evaluation, whose value is not known at some prompts.

        Values are compared over the same prompts. One over more prompts takes the place of one over some of them,
        whatever both are; one that lacks a prompt of the best one's, or is not finite, is no better.
        """
        ours, best_lacks = set(unknown), set(self.unknown)
        before = None if self.best is None or ours < best_lacks else self.best.value
        if goal.better(value, before) and (self.best is None or ours <= best_lacks):
            best = Best(value=value, updates=updates, tokens=tokens)
            return dataclasses.replace(self, best=best, since=0, unknown=tuple(unknown))
        return dataclasses.replace(self, since=self.since + 1)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What JSON values say; `RunState.from_json` checks them."""
        best = values.get("best")
        return cls(
            **{**values, "best": None if best is None else Best(**best), "unknown": tuple(values.get("unknown", ()))}
        )


@dataclass(frozen=True, kw_only=True)
class Entered:
    """Where a stage began."""

    updates: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a checkpoint holds of a run besides its agent."""

    evaluations: int = 0
    """Rows of evaluations.csv."""
    evaluated: int | None = None
    """Tokens at the newest of them; None before the first."""
    watched: Watched = Watched()
    """The measure of `keep_best`."""
    stages: tuple[Entered, ...] = ()
    """The stages so far, the last one is the present; of a run without stages none."""
    stage_watched: Watched = Watched()
    """The measure of the present stage's `until`, since it began."""

    @property
    def stage(self) -> int:
        """The present stage, counted from 0."""
        return max(0, len(self.stages) - 1)

    def due(self, tokens: int, every: int) -> bool:
        """Whether it is time to evaluate: before training, and whenever a multiple of `every` tokens was passed."""
        return every > 0 and (self.evaluated is None or tokens // every > self.evaluated // every)

    def out_of_patience(self, patience: int) -> bool:
        """Whether so many evaluations in a row were no better; never with 0."""
        return 0 < patience <= self.watched.since

    def after_evaluation(
        self,
        scores: Mapping[str, Interval],
        *,
        keep_best: Goal | None,
        stage: Goal | None,
        unknown: Mapping[str, Sequence[int]] = NONE_UNKNOWN,
        updates: int,
        tokens: int,
    ) -> Self:
        """After an evaluation with these scores; the goals are those of `keep_best` and of the present stage.

        `unknown` has for each measure the prompts at which it is not known.
        """

        def then(watched: Watched, goal: Goal) -> Watched:
            lacks = unknown.get(goal.measure, ())
            return watched.then(goal.value(scores), goal, unknown=lacks, updates=updates, tokens=tokens)

        return dataclasses.replace(
            self,
            evaluations=self.evaluations + 1,
            evaluated=tokens,
            watched=self.watched if keep_best is None else then(self.watched, keep_best),
            stage_watched=Watched() if stage is None else then(self.stage_watched, stage),
        )

    def entered(
        self,
        scores: Mapping[str, Interval],
        goal: Goal | None,
        *,
        unknown: Mapping[str, Sequence[int]] = NONE_UNKNOWN,
        updates: int,
        tokens: int,
    ) -> Self:
        """In the next stage, or the first, whose goal begins at these scores, if any were measured here."""
        watched = Watched()
        if goal is not None and scores:
            lacks = unknown.get(goal.measure, ())
            watched = watched.then(goal.value(scores), goal, unknown=lacks, updates=updates, tokens=tokens)
        here = Entered(updates=updates, tokens=tokens)
        return dataclasses.replace(self, stages=(*self.stages, here), stage_watched=watched)

    def after_changes(self, settings: Collection[str]) -> Self:
        """With these settings changed: a best value that cannot be compared any more is forgotten."""
        if any(name in OF_THE_MEASURE or name.startswith("env_settings.") for name in settings):
            return dataclasses.replace(self, evaluated=None, watched=Watched(), stage_watched=Watched())
        return dataclasses.replace(self, stage_watched=Watched()) if "stages" in settings else self

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values; `from_json` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The state that `to_json` gave.

        Raises: TypeError, ValueError, KeyError or AttributeError for values that `to_json` does not give.
        """
        state = cls(
            **{
                **values,
                "watched": Watched.from_json(values.get("watched", {})),
                "stage_watched": Watched.from_json(values.get("stage_watched", {})),
                "stages": tuple(Entered(**entered) for entered in values.get("stages", ())),
            }
        )
        counts = [state.evaluations, 0 if state.evaluated is None else state.evaluated]
        counts += [count for entered in state.stages for count in (entered.updates, entered.tokens)]
        for watched in (state.watched, state.stage_watched):
            counts += [watched.since, *watched.unknown]
            if watched.best is not None:
                counts += [watched.best.updates, watched.best.tokens]
                if type(watched.best.value) not in (int, float):
                    raise ValueError(f"its best value is {watched.best.value!r}")
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"its counts are {counts}")
        return state


@dataclass(frozen=True, kw_only=True)
class Rewound:
    """What a run goes on with, besides its agent."""

    history: list[Change] = dataclasses.field(default_factory=list)
    """Settings that have changed since the run began."""
    state: RunState = dataclasses.field(default_factory=RunState)
    rewards: TrainingRewards = dataclasses.field(default_factory=TrainingRewards)
