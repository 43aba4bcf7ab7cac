"""What a run does between two updates: held-out evaluations, the best model, the next stage, an early end.

    after the update that passes a multiple of eval_every tokens, before the first, after the last of a stage or of all:
        measure the student on the same held-out prompts with the same random numbers; a row of evaluations.csv
        if keep_best is better than ever: save the model, which is `best/` from the next checkpoint on
    if the stage is over, by its tokens or its measure: go on with the settings of the next one
    after `patience` evaluations in a row that were no better: end

An evaluation changes nothing that is trained: it draws no random number of training's. All processes of a job take
part, since an evaluation is a collective call, and all come to the same state; the main one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.evaluation import evaluate
from rlgkd.scripts._console import say
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.metrics import metric_of
from rlgkd.scripts.runs.folder import EVALUATIONS
from rlgkd.scripts.runs.goal import Goal
from rlgkd.scripts.runs.model_folders import publish, save_better
from rlgkd.scripts.runs.overfitting import TrainingRewards, warn
from rlgkd.scripts.runs.run_state import NONE_UNKNOWN, Rewound
from rlgkd.scripts.runs.stages import check_goals, ended_early, follow, goals, why_over
from rlgkd.scripts.runs.stopping import StopRequest
from rlgkd.scripts.runs.tables import ProgressCsv
from rlgkd.statistics import Interval
from rlgkd.teachers import Teacher
from rlgkd.teachers.served import ServedTeacher

TOKENS, UPDATES = "time/total_timesteps", "time/iterations"
"""Columns of evaluations.csv, as in progress.csv; the others are NAME, NAME/low and NAME/high of each measure."""


class Course(BaseCallback):
    """Moves a run's `state` on between two updates; the recorder saves it, and asks it what to show."""

    def __init__(
        self,
        settings: RunConfig,
        out: Path,
        teacher: Teacher | None,
        found: Rewound,
        stop: StopRequest,
        *,
        console: Console,
    ) -> None:
        """Go on from where a run was found.

        Raises: SettingError for a measure of which neither direction is better.
        """
        super().__init__()
        self.settings, self.out, self.teacher, self.stop, self.console = settings, out, teacher, stop, console
        self.state = found.state
        self.goal, self.stage_goals = goals(settings)
        self.scores: Mapping[str, Interval] = {}
        """Those of the newest evaluation since the run was started or resumed."""
        self.unknown: Mapping[str, Sequence[int]] = NONE_UNKNOWN
        """Measures of it that are not known at some prompts, with the prompts' numbers."""
        self.model: TextAlgorithm
        self._rewards = found.rewards
        self._whole = True
        """Whether the update that was begun last was finished."""

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds of it; nothing without evaluations on the way, stages, served teacher."""
        found: dict[str, Any] = {}
        if self.settings.eval_every or self.settings.stages:
            found["run"] = self.state.to_json()
        if self.settings.eval_every:
            found["training_rewards"] = self._rewards.to_json()
        if isinstance(served := self.model.outside_teacher, ServedTeacher):
            found["served_teacher"] = served.fixed_logp_T.tolist()
        return found

    def saved(self) -> None:
        """Follow a checkpoint, which knows of the best model so far."""
        publish(self.out)

    def shown(self) -> list[str]:
        """What the live line shows of it."""
        stages = [f"stage {self.state.stage + 1}/{len(self.settings.stages)}"] if self.settings.stages else []
        goal = self.goal or self._stage_goal
        if goal is None or goal.measure not in self.scores:
            return stages
        return [*stages, f"held-out {goal.measure} {goal.value(self.scores):.3f}"]

    @property
    def _stage_goal(self) -> Goal | None:
        return self.stage_goals[self.state.stage]

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        if self.settings.stages and not self.state.stages:
            self._enter({})

    def _on_rollout_start(self) -> None:
        settings, tokens = self.settings, self.model.num_timesteps
        ends_here = bool(why_over(settings, self.state, tokens)) and self.state.evaluated != tokens
        if settings.eval_every and (ends_here or self.state.due(tokens, settings.eval_every)):
            if self._asked_to_stop():
                return
            self._evaluate()
        while (why := why_over(settings, self.state, tokens)) and self.state.stage + 1 < len(settings.parts):
            self._enter(self.scores if self.state.evaluated == tokens else {}, why)
        self.model.ends = ended_early(settings, self.state, tokens)

    def _on_rollout_end(self) -> None:
        self._whole = self.locals["going"]
        if self._whole:
            self._rewards.add(self.model.trajectories)

    def _on_training_end(self) -> None:
        tokens = self.model.num_timesteps
        over = self._whole and tokens >= self.settings.tokens
        if self.settings.eval_every and over and self.state.evaluated != tokens:
            self._evaluate()

    def _asked_to_stop(self) -> bool:
        """Whether a process was; the evaluation then is the first thing that the resumed run does."""
        return any(number is not None for number in self.model.ranks.gather(lambda: self.stop.number))

    def _evaluate(self) -> None:
        model, settings, tokens = self.model, self.settings, self.model.num_timesteps
        began = time.perf_counter()
        evaluation = evaluate(
            model.student,
            self.teacher,
            model.task,
            split=settings.eval_every_split,
            prompts=settings.eval_every_prompts,
            seed=settings.eval_seed,
            forward_kl=settings.eval_forward_kl,
            ranks=model.ranks,
        )
        # In the row of the update that follows it in times.csv.
        self.logger.record("time/evaluation", time.perf_counter() - began, exclude="csv")
        self.scores, self.unknown = evaluation.scores(), evaluation.unknown_prompts()
        prompts = f"{settings.eval_every_prompts} {settings.eval_every_split} prompts"
        if settings.eval_every_split != model.split:
            if math.isnan(self._rewards.held_out.mean):
                # Texts from before it, of a run that now evaluates otherwise, are of another student.
                self._rewards = TrainingRewards(self.scores["reward"])
            warn(model.watch, self._rewards, self.scores["reward"], prompts)
        check_goals(settings, self.scores)
        self.state = self.state.after_evaluation(
            self.scores,
            keep_best=self.goal,
            stage=self._stage_goal,
            unknown=self.unknown,
            updates=model.state.updates,
            tokens=tokens,
        )
        with model.whole() if self._is_best else nullcontext():
            model.ranks.from_main(self._write)

    def _enter(self, scores: Mapping[str, Interval], why: str = "") -> None:
        """Go on with the next stage; `scores` are those of the model that it begins with, if it was evaluated."""
        model, tokens, number = self.model, self.model.num_timesteps, len(self.state.stages)
        goal, updates = self.stage_goals[number], model.state.updates
        self.state = self.state.entered(scores, goal, unknown=self.unknown, updates=updates, tokens=tokens)
        follow(self.settings, model, self.state)
        model.state.alpha = None  # where a stage before has steered it to
        name = self.settings.parts[number].name
        where = f"stage {number + 1} of {len(self.settings.parts)}, {name}, begins after {tokens:,} tokens"
        say(self.console, f"{where}: {why}" if why else where)

    def _write(self) -> None:
        """The row, the model if it is the best so far, and a line on the console."""
        row: dict[str, Any] = {UPDATES: self.model.state.updates, TOKENS: self.model.num_timesteps}
        for name, score in self.scores.items():
            row |= {name: score.mean, f"{name}/low": score.low, f"{name}/high": score.high}
        ProgressCsv(self.out / EVALUATIONS).write(row, dict.fromkeys(row, ()))
        means = {f"held_out/{name}": score.mean for name, score in self.scores.items()}
        for output in self.model.logger.output_formats:
            if not isinstance(output, ProgressCsv):  # such as TensorBoard's
                output.write(means, dict.fromkeys(means, ()), self.model.num_timesteps)
        if self._is_best:
            assert self.state.watched.best is not None
            save_better(self.model, self.out, self.state.watched.best)
        say(self.console, self._line())

    @property
    def _is_best(self) -> bool:
        """Whether the model that was evaluated last is the best so far, which is kept."""
        return self.state.watched.best is not None and self.state.watched.since == 0

    def _line(self) -> str:
        split, prompts = self.settings.eval_every_split, self.settings.eval_every_prompts
        goal = self.goal or self._stage_goal
        shown = "reward" if goal is None else goal.measure
        metric, score = metric_of(shown), self.scores.get(shown, Interval())
        text = f"{self.model.num_timesteps:,} tokens: {metric.label_in_text} {metric.value(score.mean)}"
        if bounds := metric.bounds(score.low, score.high, between=" to "):
            text += f" ({bounds})"
        text += f" on {prompts} {split} prompts"
        lacks = self.unknown.get(shown, ())
        if lacks:
            text += f", of which it is not known for {len(lacks)}"
        if (best := self.state.watched.best) is None:
            return text
        if self.state.watched.since == 0:
            return f"{text}, the best so far"
        ends = "; training ends" if ended_early(self.settings, self.state, self.model.num_timesteps) else ""
        if not {*lacks} <= {*self.state.watched.unknown}:
            text += " that the best has, so it cannot be the best"
        return f"{text}; the best is {metric.value(best.value)} at {best.tokens:,} tokens{ends}"
