"""In which stage a run is, when it is over, and how its agent follows; what a stage is, is in rlgkd.scripts.config."""

from __future__ import annotations

from collections.abc import Collection

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import CHANGEABLE, AlgorithmConfig
from rlgkd.errors import SettingError
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.metrics import metric_of
from rlgkd.scripts.runs.goal import Goal, goal_of
from rlgkd.scripts.runs.run_state import RunState


def goals(settings: RunConfig) -> tuple[Goal | None, list[Goal | None]]:
    """The goal of `keep_best`, and that of each stage's `until`.

    Raises: SettingError for a measure of which neither direction is better.
    """
    of_stages = [
        None if stage.plateau is None else goal_of(stage.plateau.measure, f"stages[{number}].until")
        for number, stage in enumerate(settings.parts, start=1)
    ]
    return None if settings.keep_best is None else goal_of(settings.keep_best, "keep_best"), of_stages


def check_goals(settings: RunConfig, measures: Collection[str]) -> None:
    """Refuse a measure that evaluations do not have, before anything is trained.

    Raises: SettingError.
    """
    keep_best, of_stages = goals(settings)
    if keep_best is not None:
        keep_best.check(measures, "keep_best")
    for number, goal in enumerate(of_stages, start=1):
        if goal is not None:
            goal.check(measures, f"stages[{number}].until")


def check_agent(settings: RunConfig, agent: TextAlgorithm) -> None:
    """Refuse a stage that the agent could not follow, before the first begins.

    Raises: SettingError, DataError.
    """
    for number in range(1, len(settings.parts)):
        agent.check_change(_config(settings, agent, number))


def follow(settings: RunConfig, agent: TextAlgorithm, state: RunState) -> None:
    """Have the agent train by the stage in which the run is, from the next update on.

    Raises: SettingError if the settings have fewer stages than the run has begun.
    """
    if not settings.stages:
        return
    number = state.stage
    if number >= len(settings.parts):
        remedy = f"the run is in stage {number + 1}; give as many or more"
        raise SettingError("stages", len(settings.parts), remedy)
    began = state.stages[number].tokens if state.stages else 0
    stage = settings.parts[number]
    schedules = (1.0 - began / settings.tokens, 1.0 - stage.end / settings.tokens)
    if schedules[0] <= schedules[1]:  # it has come to its end with the update in which it began
        schedules = (schedules[0], schedules[0] - 1.0)
    agent.reconfigure(_config(settings, agent, number), schedules=schedules)


def why_over(settings: RunConfig, state: RunState, tokens: int) -> str:
    """Why the present stage is over after so many tokens; empty if it is not."""
    if not state.stages:
        return ""
    stage = settings.parts[state.stage]
    if stage.end <= tokens and state.stage + 1 < len(settings.parts):
        return f"{stage.end:,} tokens were reached"
    if stage.plateau is not None and state.stage_watched.since >= stage.plateau.patience:
        name = metric_of(stage.plateau.measure.lstrip("+-")).label_in_text
        return f"{name} was no better in {state.stage_watched.since} evaluations"
    return ""


def ended_early(settings: RunConfig, state: RunState, tokens: int) -> bool:
    """Whether evaluations have ended the run: `patience`, or the measure of the last stage."""
    last = state.stage + 1 == len(settings.parts)
    return state.out_of_patience(settings.patience) or (last and bool(why_over(settings, state, tokens)))


def _config(settings: RunConfig, agent: TextAlgorithm, number: int) -> AlgorithmConfig:
    """The agent's settings in a stage; what cannot change stays as the agent has resolved it."""
    run = settings.in_stage(number)
    kept = {name: value for name, value in agent.config.flat().items() if name not in CHANGEABLE}
    given = {name: value for name, value in run.algorithm.flat().items() if name in CHANGEABLE}
    return agent.Config(**{**kept, **given, "learning_rate": run.learning_rate})
