"""Completes prompts with a model: `rlgkd generate`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgkd.envs.rewards.constant import no_reward
from rlgkd.envs.task import TextTask
from rlgkd.lm import open_by_name
from rlgkd.ops.logit_filters import Filters
from rlgkd.rollout import rollout


def complete(
    model: str,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    greedy: bool,
    chat: bool,
    seed: int,
    stop: Sequence[str],
    filters: Filters,
) -> list[str]:
    """Return one completion for each prompt.

    Raises: ModelError, SettingError; DataError for an empty prompt or one that exceeds the model's context.
    """
    lm = open_by_name(model, temperature=temperature)
    task = TextTask(
        prompts=list(prompts),
        reward=no_reward,
        tokenizer=lm.tokenizer,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=lm.context,
        chat=chat,
        stop=stop,
    )
    items = [task.item("test", seed, index) for index in range(len(prompts))]
    return [t.text for t in rollout(lm, task, items, seed=seed, greedy=greedy, filters=filters)]
