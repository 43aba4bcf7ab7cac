"""Policy x task -> trajectories.

The fast path of every agent: prompts are completed in lockstep, texts decoded once at the end, the reward called once
for the batch. It yields, token for token, what stepping the environment with the same tokens yields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlgkd import scoring
from rlgkd.dialogue import Dialogue, end_ids_of, ending_with, stop_strings
from rlgkd.errors import SettingError, TooLongError
from rlgkd.item_checks import check_reference
from rlgkd.lm.generate import Completion, CoSampler, OnStep, decode
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.own_format import tokens_as_read
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.sampling import uniforms
from rlgkd.scoring import Ended
from rlgkd.types import Episode, Item, Source, StopReason, Task, Trajectory


def rollout(
    lm: LanguageModel,
    task: Task,
    items: Sequence[Item],
    *,
    group: int = 1,
    seed: int = 0,
    greedy: bool = False,
    filters: Filters | None = None,
) -> list[Trajectory]:
    """Complete each item's prompt `group` times and score the texts; see `sample_episodes`."""
    episodes = sample_episodes(lm, task, items, group=group, seed=seed, greedy=greedy, filters=filters)
    return score_episodes(task, episodes)


def score_episodes(task: Task, episodes: Sequence[Episode]) -> list[Trajectory]:
    """Score the episodes in one call of the reward."""
    scores = scoring.score(task, [ended(episode) for episode in episodes])
    return [episode.scored(score) for episode, score in zip(episodes, scores, strict=True)]


def ended(episode: Episode) -> Ended:
    """What the task is given of an episode to score it."""
    actions = episode.tokens_T[episode.action_mask_T].tolist()
    return Ended(episode.item, episode.text, list(episode.turns) or [episode.text], actions, episode.stop)


def sample_episodes(
    lm: LanguageModel,
    task: Task,
    items: Sequence[Item],
    *,
    group: int = 1,
    seed: int = 0,
    greedy: bool = False,
    source: Source = Source.STUDENT,
    stream_indices: Sequence[int] = (),
    on_step: OnStep | None = None,
    co_sampler: CoSampler | None = None,
    filters: Filters | None = None,
    single_turn: bool = False,
) -> list[Episode]:
    """Complete each item's prompt `group` times; episode p * group + g is sample g of item p.

    A sample is a function of (seed, item's key, its stream index, sample number) and the policy, not of the batch it is
    drawn in. `stream_indices` are the items' indices in the stream of items, so that an item that comes again is
    sampled differently; without them every index is 0. With `single_turn` the task does not reply. Once `on_step`
    returns False, texts that have not begun are left out.

    `filters` are for evaluation: a text that was sampled through them is not the policy's, and its log-probabilities
    and entropies are those of the filtered distribution.

    Raises: DataError if prompt and limit together exceed the model's context; SettingError for filters with `greedy`.
    """
    if greedy and filters:
        remedy = "the likeliest token passes every filter; set greedy to False, or give no filter"
        raise SettingError("greedy", greedy, remedy)
    task = ending_with(task, lm.end_ids)
    prompts = [encode_within(lm, task, item) for item in items]
    written = prompts if lm.format is None else [task.encode_prompt(item) for item in items]
    if co_sampler is not None and co_sampler.lm.format is not None:
        own = [encode_within(co_sampler.lm, task, item) for item in items]
        co_sampler = dataclasses.replace(co_sampler, prompts=own)
    uniforms_BT = None
    if not greedy:
        indices = stream_indices or [0] * len(items)
        keys = [f"{index}/{item.key}" for index, item in zip(indices, items, strict=True)]
        uniforms_BT = np.stack([uniforms(seed, key, g, task.max_new_tokens) for key in keys for g in range(group)])
    going = True

    def step(tokens: int) -> bool:
        nonlocal going
        going = on_step is None or on_step(tokens)
        return going

    stops = stop_strings(task)
    should_stop = None if stops is None else stops.should_stop
    end_ids = end_ids_of(task, lm.end_ids)
    completions = decode(
        lm,
        prompts,
        uniforms_BT=uniforms_BT,
        group=group,
        max_new_tokens=task.max_new_tokens,
        on_step=step,
        co_sampler=co_sampler,
        filters=filters,
        should_stop=should_stop,
        end_ids=end_ids,
    )
    rows = [
        Row(prompt, Dialogue(task, item, single_turn=single_turn, end_ids=end_ids), g)
        for item, prompt in zip(items, written, strict=True)
        for g in range(group)
    ]
    for row, completion in zip(rows, completions, strict=True):
        row.take(completion)
    # Rows with several turns continue after the environment's reply, each from its own position in its random stream.
    while going and (open_rows := [index for index, row in enumerate(rows) if row.dialogue.stop is None]):
        some = [rows[index] for index in open_rows]
        if co_sampler is not None and co_sampler.lm.format is not None:
            co_sampler = dataclasses.replace(co_sampler, prompts=[row.as_read_by(co_sampler.lm) for row in some])
        rest_BT = None
        if uniforms_BT is not None:
            rest_BT = _shifted(uniforms_BT[open_rows], [row.generated for row in some])
        completions = decode(
            lm,
            [row.as_read_by(lm) for row in some],
            uniforms_BT=rest_BT,
            max_new_tokens=[row.dialogue.room for row in some],
            on_step=step,
            co_sampler=co_sampler,
            filters=filters,
            should_stop=should_stop,
            end_ids=end_ids,
        )
        for row, completion in zip(some, completions, strict=True):
            row.take(completion)
    return [row.episode(source) for row in rows if row.dialogue.turns]  # without those that had not begun


def share_end_ids(task: Task, policy: LanguageModel) -> None:
    """Let a text end with the same tokens wherever it is sampled: from the policy, or by stepping an environment."""
    policy.end_ids = end_ids_of(task, policy.end_ids)
    if add_end_ids := getattr(task, "add_end_ids", None):
        add_end_ids(policy.end_ids)


def reference_episodes(lm: LanguageModel, task: Task, items: Sequence[Item]) -> list[Episode]:
    """The items' references as episodes from data, cut at the length limit.

    Raises: DataError for an item without reference, or as `sample_episodes` does.
    """
    for item in items:
        check_reference(item)
    task = ending_with(task, lm.end_ids)
    return replay_episodes(lm, task, items, [task.encode_completion(i.reference) for i in items], source=Source.DATA)


def replay_episodes(
    lm: LanguageModel,
    task: Task,
    items: Sequence[Item],
    ids: Sequence[Sequence[int]],
    *,
    source: Source,
    end_ids: frozenset[int] | None = None,
) -> list[Episode]:
    """Existing completions as episodes, cut at the length limit.

    Args:
        lm: The model whose context they must fit.
        task: It replies to the turns.
        items: The item of each completion.
        ids: The actions of each; an end token or a stop string ends a turn, and the task replies as it did.
        source: Who generated them.
        end_ids: Those of who generated them; None takes the model's.

    Raises: DataError as `sample_episodes` does.
    """
    stops = stop_strings(task)
    end_ids = end_ids_of(task, lm.end_ids if end_ids is None else end_ids)
    task = ending_with(task, end_ids)
    for item in items:
        encode_within(lm, task, item)
    rows = [Row(task.encode_prompt(item), Dialogue(task, item, end_ids=end_ids), 0) for item in items]
    for row, actions in zip(rows, ids, strict=True):
        rest = list(actions)
        while rest and row.dialogue.stop is None:
            turn = rest[: next((n for n, id_ in enumerate(rest, 1) if id_ in end_ids), len(rest))]
            turn = turn if stops is None else list(stops.truncate(turn))
            rest = rest[len(turn) :]
            turn = turn[: row.dialogue.room]
            unknown = [0.0] * len(turn)
            row.take(Completion(turn, unknown, unknown))
        row.close()
    return [row.episode(source) for row in rows]


class Row:
    """One episode in the making."""

    def __init__(self, prompt: list[int], dialogue: Dialogue, sample: int) -> None:
        self.dialogue, self.sample, self.prompt = dialogue, sample, len(prompt)
        self.tokens, self.action = list(prompt), [False] * len(prompt)
        self.logp, self.entropy = ([0.0] * len(prompt) for _ in range(2))

    def close(self) -> None:
        """End a text that stops before its next turn: the environment's last reply is dropped."""
        if self.dialogue.stop is None:
            end = len(self.action) - self.action[::-1].index(True)
            del self.tokens[end:], self.action[end:], self.logp[end:], self.entropy[end:]
            self.dialogue.drop_last_reply()

    @property
    def generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - self.prompt

    def as_read_by(self, lm: LanguageModel) -> list[int]:
        """Its tokens so far as a model reads them, which may have a format of its own."""
        if lm.format is None:
            return self.tokens
        return tokens_as_read(lm.format, self.dialogue.item, self.tokens, self.action, self.dialogue.turns)[0]

    def take(self, completion: Completion) -> None:
        """Append the policy's turn, and the environment's reply after it.

        An empty completion is that of a row whose turn had not begun when the rollout was stopped.
        """
        if not completion.ids:
            return
        reply = self.dialogue.take_turn(completion.ids)
        self.tokens += [*completion.ids, *reply]
        self.action += [True] * len(completion.ids) + [False] * len(reply)
        self.logp += [*completion.logp, *[0.0] * len(reply)]
        self.entropy += [*completion.entropy, *[0.0] * len(reply)]

    def episode(self, source: Source) -> Episode:
        """The whole, once it has ended or is to end."""
        return Episode(
            item=self.dialogue.item,
            tokens_T=np.array(self.tokens, dtype=np.int64),
            action_mask_T=np.array(self.action),
            logp_T=np.array(self.logp, dtype=np.float32),
            entropy_T=np.array(self.entropy, dtype=np.float32),
            stop=self.dialogue.stop or StopReason.LENGTH,
            source=source,
            sample=self.sample,
            text=self.dialogue.text,
            turns=self.dialogue.all_turns,
        )


def _shifted(uniforms_BT: npt.NDArray[np.float64], starts: Sequence[int]) -> npt.NDArray[np.float64]:
    """Each row from its own start on, filled with zeros."""
    shifted_BT = np.zeros_like(uniforms_BT)
    for row, start in enumerate(starts):
        shifted_BT[row, : uniforms_BT.shape[1] - start] = uniforms_BT[row, start:]
    return shifted_BT


def encode_within(lm: LanguageModel, task: Task, item: Item) -> list[int]:
    """The prompt's ids as the model reads them, checked to leave room for a completion in its context."""
    prompt = task.encode_prompt(item) if lm.format is None else lm.format.encode_prompt(item)
    if len(prompt) + task.max_new_tokens > lm.context:
        remedy = (
            f"{len(prompt)} tokens and {task.max_new_tokens} new ones exceed the model's context of {lm.context}; "
            "shorten the prompt or lower max_new_tokens"
        )
        raise TooLongError("prompt", item.key, remedy)
    return prompt
