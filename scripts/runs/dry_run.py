"""What a run would do and take, from its settings and a short trial: `rlgkd train ... --dry-run`. Nothing is written.

The trial makes a few updates of the model in memory, with the reward called as in training, and evaluates some prompts.
Times are those of this machine as busy as it is now; texts that become longer or shorter in training change them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from typing import Any, Final

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel
from rlgkd.scripts._peak_memory import peak_mb
from rlgkd.scripts._yaml import dump_yaml
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.formatting import duration
from rlgkd.scripts.runs.train import build_agent
from rlgkd.secret_masks import masked
from rlgkd.teachers import RoutedTeachers, model_of
from rlgkd.types import Item, Task

TRIAL_UPDATES: Final = 3
"""Updates of the trial; the first one, which also prepares what later ones keep, is not timed."""
TRIAL_PROMPTS: Final = 16
"""Prompts of the trial's evaluation, at most."""


def dry_run(settings: RunConfig) -> Iterator[str]:
    """Yield the lines, each as soon as it is known.

    Raises: SettingError, ModelError, DataError, RewardError, as the run would.
    """
    keeps_texts = settings.algorithm.sampling.teacher_texts is not None  # those that a teacher writes, in a file
    trial = RunConfig(**{**settings.flat(), "teacher_texts": None}) if keeps_texts else settings
    yield "settings that are not the default:"
    yield dump_yaml(masked(_chosen(settings))).rstrip()
    agent = build_agent(trial)
    yield f"student: {settings.student}, {_parameters(agent)}"
    yield f"teacher: {settings.shown_teacher or 'none'}{', which is the start' if settings.teacher_is_start else ''}"
    item = agent.task.item("train", settings.seed, 0)
    yield f"the first prompt as the model reads it: {first_prompt(agent.task, item)}"
    models_of_teacher = model_of(agent.teacher)
    teacher = models_of_teacher.of(item) if isinstance(models_of_teacher, RoutedTeachers) else models_of_teacher
    form = None if teacher is None else teacher.format
    if form is not None and form.template and not form.reads_sibling:
        read = agent.student.tokenizer.decode(form.encode_prompt(item), skip_special_tokens=False)
        yield f"the first prompt as the teacher reads it:\n{read}"
    first = settings.parts[0]  # in which the trial is
    texts = first.algorithm.sampling.prompts_per_update * first.algorithm.sampling.group_size
    updates, tokens, seconds = _train(agent, settings.tokens)
    a_second, an_update = tokens / seconds, tokens / updates
    yield (
        f"an update: {texts} texts, about {an_update:,.0f} tokens in {seconds / updates:.2g} s; "
        f"{a_second:,.0f} tokens a second"
    )
    training, number = settings.tokens / a_second, math.ceil(settings.tokens / an_update)
    timed = f", if the stages after {first.name} take as long" if settings.stages[1:] else ""
    yield f"training: {settings.tokens:,} tokens, about {number:,} updates, {duration(training)}{timed}"
    evaluating = yield from _evaluation(agent, settings)
    yield f"the whole: about {duration(training + evaluating)}"
    yield f"memory: {_memory(agent)}"
    yield "nothing was written"


def first_prompt(task: Task, item: Item) -> str:
    """Return a prompt decoded from its token ids, special tokens and all, after the number of tokens."""
    ids = task.encode_prompt(item)
    return f"{len(ids)} tokens\n{task.tokenizer.decode(ids, skip_special_tokens=False)}"


def _chosen(settings: RunConfig) -> dict[str, Any]:
    """The settings that differ from those of an agent on the same environment, about which nothing is said."""
    of_the_task = {"env": settings.env, "student": settings.student, "teacher": settings.teacher or None}
    default = RunConfig(agent=settings.agent, **of_the_task).flat()
    return {name: value for name, value in settings.flat().items() if name in of_the_task or value != default.get(name)}


def _parameters(agent: TextAlgorithm) -> str:
    whole = sum(p.numel() for p in agent.student.module.parameters())
    trained = sum(p.numel() for group in agent.policy.optimizer.param_groups for p in group["params"])
    return f"{whole / 1e6:,.3g} million parameters, of which {trained / 1e6:,.3g} million are trained"


class _Trial(BaseCallback):
    """Ends training after TRIAL_UPDATES whole updates, and knows when each began."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.starts.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return len(self.starts) <= TRIAL_UPDATES


def _train(agent: TextAlgorithm, tokens: int) -> tuple[int, int, float]:
    """Return updates, tokens and seconds of the trial, without its first update where there is another."""
    trial = _Trial()
    agent.set_logger(Logger(None, []))
    agent.learn(tokens, callback=trial)
    times = trial.starts
    if len(times) <= TRIAL_UPDATES:  # the run has no more updates than the trial
        times = [*times, (time.perf_counter(), agent.num_timesteps)]
    times = times[1:] if len(times) > 2 else times
    return len(times) - 1, times[-1][1] - times[0][1], times[-1][0] - times[0][0]


def _evaluation(agent: TextAlgorithm, settings: RunConfig) -> Generator[str, None, float]:
    """Yield a line on the evaluations; return their seconds."""
    measured = min(settings.eval_prompts, agent.task.size(settings.eval_split))
    prompts = min(TRIAL_PROMPTS, measured)
    given: dict[str, Any] = {"split": settings.eval_split, "prompts": prompts, "seed": settings.eval_seed}
    given["forward_kl"] = settings.eval_forward_kl
    seconds = 0.0
    parts = []
    models: list[tuple[str, LanguageModel | RoutedTeachers, int]] = [("the student before and after", agent.student, 2)]
    if isinstance(agent.teacher, LanguageModel | RoutedTeachers) and not settings.teacher_writes_as_start:
        models.append(("the teacher", agent.teacher, 1))
    for name, model, times in models:
        began = time.perf_counter()
        evaluate(model, agent.teacher, agent.task, **given)
        one = (time.perf_counter() - began) * measured / prompts
        seconds += times * one
        parts.append(f"{name} {duration(times * one)}")
        if model is agent.student and settings.eval_every:
            on_the_way = min(settings.eval_every_prompts, agent.task.size(settings.eval_every_split))
            number = 1 + math.ceil(settings.tokens / settings.eval_every)
            held_out = number * one * on_the_way / measured
            seconds += held_out
            parts.append(f"{number} on the way {duration(held_out)}")
    yield f"evaluation: {measured} {settings.eval_split} prompts, {', '.join(parts)}"
    return seconds


def _memory(agent: TextAlgorithm) -> str:
    text = f"{peak_mb() / 2**10:.2g} GiB of the host at the most in the trial"
    if agent.device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated(agent.device) / 2**30:.2g} GiB of the accelerator"
    return text
