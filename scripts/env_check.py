"""Proves an environment before anything is trained on it: `rlgkd check`.

Prompts and references fit the limits and no prompt is in two splits; the reward gives right answers more than wrong
ones, the same again, in any order and one at a time; the checkers of Gymnasium and Stable-Baselines3 pass. No model is
run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import gymnasium as gym
import numpy as np
from gymnasium.utils import env_checker
from stable_baselines3.common import env_checker as sb3_checker

from rlgkd.errors import RlgkdError, one_line
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.dry_run import first_prompt
from rlgkd.scripts.runs.train import env_arguments, make_env
from rlgkd.types import Item, Task

SPLITS: Final = ("train", "validation", "test")
ONE_BY_ONE: Final = 4
"""Answers that are also scored alone."""
FEW_PROMPTS: Final = 32
"""Fewer in the evaluation are said: an interval reaches about 2 / sqrt(n) standard deviations each way."""
Mark = Literal["ok", "FAIL", "note"]


@dataclass(frozen=True)
class Outcome:
    """What one check has found."""

    mark: Mark
    what: str
    text: str

    def __str__(self) -> str:
        """Return `FAIL  reward: ...`."""
        return f"{self.mark:<5} {self.what}: {self.text}"


def check_environment(settings: RunConfig, prompts: int = 64) -> Iterator[Outcome]:
    """Yield the outcomes, each as soon as it is known.

    Args:
        settings: Those of a run; its environment is checked, with the tokenizer of its student.
        prompts: How many of each split.

    Raises: what making the environment raises: SettingError, DataError, ModelError.
    """
    task = make_env(settings.env, settings.env_settings, student=settings.student, seed=settings.seed).task
    items = dict(_items(task, settings.seed, prompts))
    yield Outcome("ok", "splits", ", ".join(f"{split} {task.size(split):,} prompts" for split in items))
    if settings.eval_split in items and (size := task.size(settings.eval_split)) < FEW_PROMPTS:
        remedy = "its intervals will be wide; give more rows, or a larger share of them (env_settings.split_shares)"
        yield Outcome("note", "splits", f"the evaluation has {size} {settings.eval_split} prompts: {remedy}")
    # Without shares every row is in every split, on purpose.
    shared: Mark = "note" if settings.env_settings.get("split_shares", "auto") is None else "FAIL"
    yield from _prompts(task, items, shared)
    split = settings.eval_split if settings.eval_split in items else next(iter(items))
    tried = items[split]
    yield from _references(task, tried)
    yield from _reward(task, tried)
    yield from _checkers(settings)
    yield Outcome("note", "the first prompt as the model reads it", first_prompt(task, tried[0]))


def _items(task: Task, seed: int, prompts: int) -> Iterator[tuple[str, list[Item]]]:
    for split in SPLITS:
        try:
            number = min(prompts, task.size(split))
        except RlgkdError:
            continue  # data without this split
        if number:
            yield split, [task.item(split, seed, index) for index in range(number)]


def _prompts(task: Task, items: dict[str, list[Item]], shared: Mark) -> Iterator[Outcome]:
    lengths = [len(task.encode_prompt(item)) for split in items.values() for item in split]
    limit = task.max_prompt_tokens
    yield Outcome("ok", "prompts", f"{min(lengths)} to {max(lengths)} tokens, of at most {limit}")
    texts = {split: {item.prompt for item in found} for split, found in items.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if both := texts.get(one, set()) & texts.get(other, set()):
            example = one_line(min(both), 60)
            yield Outcome(shared, "splits", f"{len(both)} prompts are in {one} and in {other}, such as {example!r}")


def _references(task: Task, items: Sequence[Item]) -> Iterator[Outcome]:
    lengths = [len(task.encode_completion(item.reference)) for item in items if item.reference]
    if not lengths:
        yield Outcome("note", "references", "there are none, so right answers cannot be tried")
        return
    limit = task.max_new_tokens
    longer = sum(length > limit for length in lengths)
    text = f"{min(lengths)} to {max(lengths)} tokens with their end, of at most {limit} new ones"
    if longer:
        yield Outcome("FAIL", "references", f"{text}: {longer} of {len(lengths)} do not fit; raise max_new_tokens")
    else:
        yield Outcome("ok", "references", text)


def _reward(task: Task, items: Sequence[Item]) -> Iterator[Outcome]:
    of_items = [item for item in items if item.reference] or [*items]
    answers = [item.reference or item.prompt for item in of_items]
    rewards = _scored(task, of_items, answers)
    if failures := [score.failure or "NaN" for score in rewards if math.isnan(score.reward)]:
        text = f"it failed for {len(failures)} of {len(rewards)} references, first: {one_line(failures[0], 200)}"
        yield Outcome("FAIL", "reward", text)
        return
    gold = np.array([score.reward for score in rewards])
    if of_items[0].reference:
        yield from _gold_against_wrong(task, of_items, gold)
    again = np.array([score.reward for score in _scored(task, of_items, answers)])
    yield _same("repeated", "the same again", gold, again)
    order = np.random.default_rng(0).permutation(len(of_items))
    shuffled = _scored(task, [of_items[n] for n in order], [answers[n] for n in order])
    yield _same("order", "the same in another order", gold[order], np.array([score.reward for score in shuffled]))
    few = [*zip(of_items, answers, strict=True)][:ONE_BY_ONE]
    alone = [_scored(task, [item], [answer])[0].reward for item, answer in few]
    yield _same("alone", "the same one at a time", gold[: len(few)], np.array(alone))


def _gold_against_wrong(task: Task, items: Sequence[Item], gold: np.ndarray) -> Iterator[Outcome]:
    """Compare the references' rewards with those of four kinds of wrong answers."""
    earned = f"references earn {gold.mean():.3f} on average, {gold.min():.3f} to {gold.max():.3f}"
    yield Outcome("ok", "right answers", earned)
    references = [item.reference for item in items]
    kinds = {
        "an empty text": ["" for _ in items],
        "the reference of another prompt": [*references[1:], references[0]],
        "the prompt itself": [item.prompt for item in items],
        "half of the reference": [" ".join(text.split()[: len(text.split()) // 2]) for text in references],
    }
    for kind, answers in kinds.items():
        differs = np.array([answer.strip() != text.strip() for answer, text in zip(answers, references, strict=True)])
        if not differs.any():
            continue
        scored = np.array([score.reward for score in _scored(task, items, answers)])
        wrong, right = scored[differs], gold[differs]
        failed = np.isnan(wrong)
        if failed.any():
            yield Outcome("note", "wrong answers", f"{kind}: the reward failed for {failed.sum()} of {len(wrong)}")
        wrong, right = wrong[~failed], right[~failed]
        if not len(wrong):
            continue
        more = (wrong > right).mean()
        text = f"{kind} earns {wrong.mean():.3f} on average, more than the reference in {100 * more:.0f}% of prompts"
        yield Outcome("ok" if wrong.mean() < right.mean() else "FAIL", "wrong answers", text)


def _scored(task: Task, items: Sequence[Item], answers: Sequence[str]) -> list[Any]:
    """Score answers as episodes of one turn."""
    ids = [task.encode_completion(answer) for answer in answers]
    return task.score(items, answers, turns=[[answer] for answer in answers], ids=ids)


def _same(name: str, text: str, expected: np.ndarray, found: np.ndarray) -> Outcome:
    differ = ~((expected == found) | (np.isnan(expected) & np.isnan(found)))
    if not differ.any():
        return Outcome("ok", f"reward, {name}", text)
    first = int(np.argmax(differ))
    what = f"{differ.sum()} of {len(expected)} are other numbers, such as {expected[first]:g} and {found[first]:g}"
    if np.allclose(expected, found, rtol=1e-4, atol=1e-6, equal_nan=True):
        return Outcome("note", f"reward, {name}", f"{what}: only by rounding")
    return Outcome("FAIL", f"reward, {name}", f"not {text}: {what}")


def _checkers(settings: RunConfig) -> Iterator[Outcome]:
    """Run both checkers on environments of their own, since they step them."""
    checkers: dict[str, Callable[[gym.Env[Any, Any]], None]] = {
        "Gymnasium's checker": lambda env: env_checker.check_env(env, skip_render_check=True),
        "Stable-Baselines3's checker": sb3_checker.check_env,
    }
    for name, checker in checkers.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                checker(_environment(settings))
            except Exception as error:
                yield Outcome("FAIL", name, f"{type(error).__name__}: {one_line(error, 300)}")
                continue
        said = dict.fromkeys(one_line(w.message, 200) for w in caught if not issubclass(w.category, DeprecationWarning))
        if said:
            yield Outcome("note", name, f"it passes, and warns: {'; '.join(said)}")
        else:
            yield Outcome("ok", name, "it passes")


def _environment(settings: RunConfig) -> gym.Env[Any, Any]:
    arguments = env_arguments(settings.env, settings.env_settings, student=settings.student)
    made: gym.Env[Any, Any] = gym.make(settings.env, **arguments).unwrapped
    return made
