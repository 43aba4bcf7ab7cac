"""rlgkd/ReasoningGym-v0: problems of the reasoning-gym package (Stojanovski et al., 2025), scored by its own rules.

Each item is a data set of size one whose seed is drawn from (split, seed, index), so there is no end of problems. It
needs `rlgkd[reasoning-gym]`. Some of its data sets evaluate the model's text as Python, by `eval` or sympy's parser:
they are refused unless `evaluate_answers` is set.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlgkd.envs.data.items import read_items
from rlgkd.envs.task import TextTask
from rlgkd.errors import DependencyError, SettingError, unknown_remedy
from rlgkd.settings import checked_arguments

EVALUATES = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
"""Calls by which a scorer may run the model's text."""


@checked_arguments
def reasoning_gym(
    *,
    dataset: str = "leg_counting",
    dataset_settings: Mapping[str, Any] | None = None,
    prompt: str = "{question}\nAnswer:",
    marker: str = "",
    evaluate_answers: bool = False,
    tokenizer: Any = "embedded:grounded-teacher",
    max_prompt_tokens: int = 208,
    max_new_tokens: int = 32,
    **settings: Any,
) -> TextTask:
    """The problems of one data set of the reasoning-gym package, scored by its own rules.

    Prompt: The problem's question, then `Answer:`, or another template of `question`.

    Reward: The score that the data set gives the answer, in [0, 1].

    Episode end: The end token; at the length limit, the text is scored as it stands.

    Splits: Problems are drawn without end; the hash of the prompt decides the split, 8, 1 and 1 tenths.

    Args:
        dataset: The data set's name in reasoning-gym.
        dataset_settings: The data set's own settings, such as {"max_animals": 4}; all but `seed` and `size`.
        prompt: Template of `question`.
        marker: The answer is the text after the last marker; a completion without one is wrong. If this is empty, the
            answer is the whole completion.
        evaluate_answers: Allow a data set that runs the model's text as Python, where that can do no harm.
        tokenizer: A model's name, or a loaded tokenizer.
        max_prompt_tokens: Length limit of a prompt.
        max_new_tokens: Length limit of a completion.
        **settings: Other settings of `TextTask`.

    Raises: DependencyError without the package; SettingError for a data set or settings that it does not know.
    """
    chosen = dict(dataset_settings or {})
    for field in chosen.keys() & {"seed", "size"}:
        raise SettingError(
            "dataset_settings", {field: chosen[field]}, "leave it out; the environment's seed orders them"
        )
    scorer, _ = _draw_problem(dataset, 0, chosen)
    if not evaluate_answers and EVALUATES.search(inspect.getsource(type(scorer))):
        remedy = "it runs the model's text as Python; where that can do no harm, set evaluate_answers"
        raise SettingError("dataset", dataset, remedy)

    def draw(rng: random.Random) -> dict[str, Any]:
        _, entry = _draw_problem(dataset, rng.randrange(2**31), chosen)
        return {"question": entry["question"], "answer": entry["answer"] or "", "entry": entry}

    def reward(completions: Sequence[str], entry: Sequence[dict[str, Any]]) -> list[float]:
        return [score(text, problem) for text, problem in zip(completions, entry, strict=True)]

    def score(text: str, problem: dict[str, Any]) -> float:
        if marker not in text:
            return 0.0
        answer = text.rpartition(marker)[2].strip() if marker else text
        try:
            return float(scorer.score_answer(answer, problem))
        except (SyntaxError, ValueError):  # some scorers parse the answer as a number or a formula
            return 0.0

    return TextTask(
        name=f"ReasoningGym {dataset}",
        prompts=read_items(draw, prompt=prompt, reference="answer"),
        reward=reward,
        tokenizer=tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        **settings,
    )


def _draw_problem(dataset: str, seed: int, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A data set of one problem, and the problem.

    Some data sets draw from Python's global random stream (list_functions does): it is seeded, and then restored.
    """
    try:
        import reasoning_gym as package
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DependencyError("dataset", dataset, f"{error}: pip install 'rlgkd[reasoning-gym]'") from error
    if dataset not in DATASETS:
        raise SettingError("dataset", dataset, unknown_remedy(dataset, DATASETS))
    before = random.getstate()
    random.seed(seed)
    try:
        problems = package.create_dataset(dataset, seed=seed, size=1, **settings)
        return problems, problems[0]
    except (AssertionError, TypeError, ValueError) as error:
        raise SettingError("dataset_settings", dict(settings), f"{dataset} says: {error}") from error
    finally:
        random.setstate(before)
