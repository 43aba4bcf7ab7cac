"""What summary.json says of a run: scores before and after, some texts, its reward, and evaluations on the way."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.evaluation import Evaluation
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.runs.folder import ROLLOUTS
from rlgkd.scripts.runs.rollouts import records
from rlgkd.scripts.runs.run_state import RunState
from rlgkd.settings import span
from rlgkd.statistics import Interval
from rlgkd.types import StopReason

EXAMPLES = 20
"""Prompts whose texts are shown."""


def summarise(
    settings: RunConfig, agent: TextAlgorithm, before: Evaluation, after: Evaluation, taught: Evaluation | None
) -> dict[str, Any]:
    """What summary.json holds: scores with intervals, paired changes, and texts side by side."""

    def plain(scores: dict[str, Interval]) -> dict[str, dict[str, float]]:
        return {name: asdict(score) for name, score in scores.items()}

    def text(evaluation: Evaluation, row: int) -> dict[str, Any]:
        written = evaluation.trajectories[row]
        return {
            "text": written.transcript,
            "reward": written.score.reward,
            "parts": dict(written.score.parts),
            "quality": evaluation.qualities[row],
            "stop": str(written.stop),
        }

    return {
        "name": settings.name,
        "env": settings.env,
        "agent": settings.agent,
        "student": settings.student,
        "teacher": settings.shown_teacher,
        "alpha": settings.in_stage(0).algorithm.alpha(1.0),
        "alpha_end": agent.config.objective_at(0.0, alpha=agent.state.alpha).alpha,
        "divergence": agent.config.objective.divergence.name,
        "updates": agent.state.updates,
        "tokens": agent.num_timesteps,
        "trained_on": trained_on(settings),
        "distinct": len({t.transcript for t in after.trajectories}) / max(1, len(after.trajectories)),
        "prompts": len(before.trajectories),
        "split": settings.eval_split,
        "before": plain(before.scores()),
        "after": plain(after.scores()),
        "teacher_scores": plain(taught.scores()) if taught else {},
        "change": plain(after.change_from(before)),
        "examples": [
            {
                "key": item.key,
                "prompt": item.prompt,
                "reference": item.reference,
                "before": text(before, row),
                "after": text(after, row),
                **({"teacher": text(taught, row)} if taught else {}),
            }
            for row, item in enumerate(t.item for t in after.trajectories[:EXAMPLES])
        ],
    }


def trained_on(settings: RunConfig) -> list[str]:
    """What the terms of Eq. 5 asked, over all stages: `reward`, `teacher`, `references` by their cross-entropy."""
    found = set()
    for stage in settings.parts:
        least, most = span(stage.algorithm.alpha)
        found |= {"reward"} if least < 1 else set()
        found |= {"references" if stage.algorithm.objective.cross_entropy else "teacher"} if most > 0 else set()
    return sorted(found)


def objective_text(settings: RunConfig) -> str:
    """What the first update is for, in words: `0.5 of the reward, 0.5 of jsd(0.9) to the teacher`."""
    algorithm = settings.in_stage(0).algorithm
    alpha, divergence = algorithm.alpha(1.0), algorithm.objective.divergence
    parameters = ", ".join(f"{value:g}" for _, value in divergence.parameters if isinstance(value, float))
    spelled = f"{divergence.name}({parameters})" if parameters else divergence.name
    taught = f"{spelled} to the teacher"
    if algorithm.objective.cross_entropy:
        taught = "the cross-entropy of given texts, which is shown as divergence"
    elif not settings.teacher:
        taught = f"the estimator {algorithm.objective.estimator}"
    shares = {"the reward": 1 - alpha, taught: alpha}
    return ", ".join(f"{share:.4g} of {what}" for what, share in shares.items() if share)


def learns_from_references_alone(settings: RunConfig) -> bool:
    """Whether neither a reward nor a teacher, by its probabilities or its texts, has a part in what is trained."""
    texts = {stage.algorithm.sampling.off_policy for stage in settings.parts}
    return trained_on(settings) == ["references"] and texts == {"references"}


def held_out(settings: RunConfig, state: RunState) -> dict[str, Any]:
    """How the evaluations on the way went: how many, the best of them, and whether they ended the training."""
    best = state.watched.best
    return {
        "split": settings.eval_every_split,
        "prompts": settings.eval_every_prompts,
        "evaluations": state.evaluations,
        "keep_best": settings.keep_best,
        "best": None if best is None else asdict(best),
        "ended_early": state.out_of_patience(settings.patience),
        "since_best": state.watched.since,
    }


def stages(settings: RunConfig, state: RunState, tokens: int) -> list[dict[str, Any]]:
    """What each stage that was begun is called, and from which update and token on to which token it went."""
    ends = [*(entered.tokens for entered in state.stages[1:]), tokens]
    return [
        {"name": stage.name, "updates": entered.updates, "tokens": entered.tokens, "end": end}
        for stage, entered, end in zip(settings.parts, state.stages, ends, strict=False)
    ]


def rewards_of(out: Path, agent: TextAlgorithm) -> dict[str, Any]:
    """How the reward did while training: texts that it scored or failed at, why first, and what all earned alike."""
    scored, failures = 0, list[str]()
    for record in records(out / ROLLOUTS):
        scored += record["stop"] != StopReason.TRUNCATED
        # Null, or NaN in a file of an older version.
        if math.isnan(to_float(record["reward"])) and record["stop"] != StopReason.TRUNCATED:
            failures.append(str(record.get("failure", "")))
    return {
        "scored": scored,
        "failed": len(failures),
        "first_failure": next(iter(failures), None),
        "always": agent.constant_reward,
    }
