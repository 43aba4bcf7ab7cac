"""Policy x task -> trajectories.

The fast path of every agent: prompts are completed in lockstep, texts decoded once at the end, the reward called once
for the batch. It yields, token for token, what stepping the environment with the same tokens yields.

Left out: turns (an environment that answers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgkd.errors import DataError
from rlgkd.lm.decoding import Companion, Completion, OnStep, decode
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.sampling import uniforms
from rlgkd.types import Item, Source, StopReason, Task, Trajectory


def rollout(
    lm: LanguageModel,
    task: Task,
    items: Sequence[Item],
    *,
    group: int = 1,
    seed: int = 0,
    greedy: bool = False,
    source: Source = Source.STUDENT,
    places: Sequence[int] = (),
    on_step: OnStep | None = None,
    companion: Companion | None = None,
) -> list[Trajectory]:
    """Complete each item's prompt `group` times and score the texts; trajectory p * group + g is sample g of item p.

    A sample is a function of (seed, item's key, its place, sample number) and the policy, not of the batch it is drawn
    in. `places` says where in its stream each item stands, so that an item that comes round again is sampled anew;
    without it every place is 0.

    Raises: DataError if prompt and limit together exceed the model's context.
    """
    prompts = [encode_within(lm, task, item) for item in items]
    uniforms_BT = None
    if not greedy:
        keys = [f"{place}/{item.key}" for place, item in zip(places or [0] * len(items), items, strict=True)]
        uniforms_BT = np.stack([uniforms(seed, key, g, task.max_new_tokens) for key in keys for g in range(group)])
    completions = decode(
        lm, prompts, uniforms_BT=uniforms_BT, group=group, max_new_tokens=task.max_new_tokens, on_step=on_step,
        companion=companion,
    )  # fmt: skip
    return _trajectories(lm, task, items, prompts, completions, group=group, source=source)


def references(lm: LanguageModel, task: Task, items: Sequence[Item]) -> list[Trajectory]:
    """The items' references as trajectories from data, cut at the length limit and scored like any other text.

    Raises: DataError for an item without reference, or as `rollout` does.
    """
    for item in items:
        check_reference(item)
    return written(lm, task, items, [task.encode_completion(item.reference) for item in items], source=Source.DATA)


def written(
    lm: LanguageModel, task: Task, items: Sequence[Item], ids: Sequence[Sequence[int]], *, source: Source
) -> list[Trajectory]:
    """Completions that are there already as trajectories, cut at the length limit and scored like any other text.

    Raises: DataError as `rollout` does.
    """
    completions = [Completion(list(cut), [0.0] * len(cut)) for cut in (some[: task.max_new_tokens] for some in ids)]
    prompts = [encode_within(lm, task, item) for item in items]
    return _trajectories(lm, task, items, prompts, completions, group=1, source=source)


def _trajectories(
    lm: LanguageModel,
    task: Task,
    items: Sequence[Item],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    *,
    group: int,
    source: Source,
) -> list[Trajectory]:
    rows = [(item, prompt, g) for item, prompt in zip(items, prompts, strict=True) for g in range(group)]
    texts = [task.decode_completion(completion.ids) for completion in completions]
    scores = task.score([item for item, _, _ in rows], texts)
    return [
        Trajectory(
            item=item,
            tokens_T=np.array([*prompt, *completion.ids], dtype=np.int64),
            action_mask_T=np.arange(len(prompt) + len(completion.ids)) >= len(prompt),
            logp_T=np.array([0.0] * len(prompt) + completion.logp, dtype=np.float32),
            stop=StopReason.END if completion.ids[-1] == lm.end else StopReason.LENGTH,
            source=source,
            sample=g,
            text=text,
            score=score,
        )
        for (item, prompt, g), completion, text, score in zip(rows, completions, texts, scores, strict=True)
    ]


def check_reference(item: Item) -> None:
    """Raise DataError if the item has none."""
    if not item.reference:
        raise DataError("reference", item.key, "it has none; give references or set student_fraction to 1")


def encode_within(lm: LanguageModel, task: Task, item: Item) -> list[int]:
    """The prompt's ids, checked to leave room for a completion in the model's context."""
    prompt = task.encode_prompt(item)
    if len(prompt) + task.max_new_tokens > lm.context:
        raise DataError(
            "prompt", item.key,
            f"{len(prompt)} tokens and {task.max_new_tokens} new ones exceed the model's context of {lm.context}; "
            "shorten the prompt or lower max_new_tokens",
        )  # fmt: skip
    return prompt
