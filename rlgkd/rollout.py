"""Policy x task -> trajectories.

The fast path of every agent: prompts are completed in lockstep, texts decoded once at the end, the reward called once
for the batch. It yields, token for token, what stepping the environment with the same tokens yields.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlgkd.dialogue import Dialogue, grade, stops_of
from rlgkd.errors import DataError, SettingError
from rlgkd.lm.generate import Completion, CoSampler, OnStep, decode
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.logit_filters import Filters
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
    co_sampler: CoSampler | None = None,
    filters: Filters | None = None,
) -> list[Trajectory]:
    """Complete each item's prompt `group` times and score the texts; trajectory p * group + g is sample g of item p.

    A sample is a function of (seed, item's key, its place, sample number) and the policy, not of the batch it is drawn
    in. `places` says where in its stream each item stands, so that an item that comes round again is sampled anew;
    without it every place is 0. `filters` are for evaluation: a text that was sampled through them is not the policy's,
    and its log-probabilities and entropies are those of what was sampled from. Once `on_step` returns False, texts that
    have not begun are left out.

    Raises: DataError if prompt and limit together exceed the model's context; SettingError for filters of `greedy`.
    """
    if greedy and filters:
        raise SettingError("greedy", greedy, "the likeliest token passes every filter; sample, or give no filter")
    prompts = [encode_within(lm, task, item) for item in items]
    uniforms_BT = None
    if not greedy:
        keys = [f"{place}/{item.key}" for place, item in zip(places or [0] * len(items), items, strict=True)]
        uniforms_BT = np.stack([uniforms(seed, key, g, task.max_new_tokens) for key in keys for g in range(group)])
    going = True

    def step(tokens: int) -> bool:
        nonlocal going
        going = on_step is None or on_step(tokens)
        return going

    stops = stops_of(task)
    ended = None if stops is None else stops.should_stop
    completions = decode(
        lm, prompts, uniforms_BT=uniforms_BT, group=group, max_new_tokens=task.max_new_tokens, on_step=step,
        co_sampler=co_sampler, filters=filters, should_stop=ended,
    )  # fmt: skip
    rows = [
        _Row(prompt, Dialogue(task, item), g) for item, prompt in zip(items, prompts, strict=True) for g in range(group)
    ]
    for row, completion in zip(rows, completions, strict=True):
        row.write(completion)
    # Those that the task has answered write on, each behind its own tokens and from its own place in its stream.
    while going and (places_R := [place for place, row in enumerate(rows) if row.dialogue.stop is None]):
        some = [rows[place] for place in places_R]
        completions = decode(
            lm, [row.tokens for row in some], max_new_tokens=[row.dialogue.room for row in some], on_step=step,
            uniforms_BT=None if uniforms_BT is None else _from(uniforms_BT[places_R], [row.behind for row in some]),
            co_sampler=co_sampler, filters=filters, should_stop=ended,
        )  # fmt: skip
        for row, completion in zip(some, completions, strict=True):
            row.write(completion)
    return _trajectories([row for row in rows if row.dialogue.turns], source)


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

    Args:
        lm: Whose context they must fit.
        task: It answers and scores them.
        items: What they were written for.
        ids: The actions of each; an end token or a stop string ends a turn, and the task answers as it did.
        source: Who wrote them.

    Raises: DataError as `rollout` does.
    """
    stops = stops_of(task)
    rows = [_Row(encode_within(lm, task, item), Dialogue(task, item), 0) for item in items]
    for row, some in zip(rows, ids, strict=True):
        rest = list(some)
        while rest and row.dialogue.stop is None:
            turn = rest[: rest.index(lm.end) + 1] if lm.end in rest else rest
            turn = turn if stops is None else list(stops.truncate(turn))
            rest = rest[len(turn) :]
            turn = turn[: row.dialogue.room]
            unknown = [0.0] * len(turn)
            row.write(Completion(turn, unknown, unknown))
        row.close()
    return _trajectories(rows, source)


class _Row:
    """One episode on its way to a trajectory."""

    def __init__(self, prompt: list[int], dialogue: Dialogue, sample: int) -> None:
        self.dialogue, self.sample, self.prompt = dialogue, sample, len(prompt)
        self.tokens, self.action = list(prompt), [False] * len(prompt)
        self.logp, self.entropy = ([0.0] * len(prompt) for _ in range(2))

    def close(self) -> None:
        """End a text that goes no further where the task would answer: what it said last was said to nobody."""
        if self.dialogue.stop is None:
            end = len(self.action) - self.action[::-1].index(True)
            del self.tokens[end:], self.action[end:], self.logp[end:], self.entropy[end:]
            self.dialogue.close()

    @property
    def behind(self) -> int:
        """Tokens behind the prompt."""
        return len(self.tokens) - self.prompt

    @property
    def actions(self) -> list[int]:
        return [token for token, action in zip(self.tokens, self.action, strict=True) if action]

    def write(self, completion: Completion) -> None:
        """Put the policy's turn behind what there is, and the task's answer behind that.

        An empty one is of a row whose turn the end of the rollout came before.
        """
        if not completion.ids:
            return
        answer = self.dialogue.take(completion.ids)
        self.tokens += [*completion.ids, *answer]
        self.action += [True] * len(completion.ids) + [False] * len(answer)
        self.logp += [*completion.logp, *[0.0] * len(answer)]
        self.entropy += [*completion.entropy, *[0.0] * len(answer)]


def _trajectories(rows: Sequence[_Row], source: Source) -> list[Trajectory]:
    scores = grade([row.dialogue for row in rows], [row.actions for row in rows])
    return [
        Trajectory(
            item=row.dialogue.item,
            tokens_T=np.array(row.tokens, dtype=np.int64),
            action_mask_T=np.array(row.action),
            logp_T=np.array(row.logp, dtype=np.float32),
            entropy_T=np.array(row.entropy, dtype=np.float32),
            stop=row.dialogue.stop or StopReason.LENGTH,
            source=source,
            sample=row.sample,
            text=row.dialogue.text,
            score=score,
            turns=row.dialogue.several,
        )
        for row, score in zip(rows, scores, strict=True)
    ]


def _from(uniforms_BT: npt.NDArray[np.float64], starts: Sequence[int]) -> npt.NDArray[np.float64]:
    """Each row from its own start, filled up behind."""
    shifted_BT = np.zeros_like(uniforms_BT)
    for row, start in enumerate(starts):
        shifted_BT[row, : uniforms_BT.shape[1] - start] = uniforms_BT[row, start:]
    return shifted_BT


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
