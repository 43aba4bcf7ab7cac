"""The data that rooms exchange: items, scores, trajectories, batches, and the protocols between them.

The letters at the end of a tensor's name are its dimensions, everywhere:

    P  prompt                       B  sequence (row)     V  vocabulary
    G  sample of a prompt's group   T  token (column)     H  hidden
    N  action: the sampled tokens of all sequences of a batch, flattened
    L  action of one sequence: [B, L] holds one value per action, padded to the longest sequence

A trajectory is one token sequence with an action mask. Its actions need not be one block after one prompt: an
environment may insert tokens of its own, which the mask leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlgkd.devices import to_device

Split = str
"""`train`, `validation` or `test`."""


class StopReason(StrEnum):
    """Why a completion ended."""

    END = "end"
    """The completion ended with the end token or a stop string."""
    LENGTH = "length"
    """It reached the length limit and is scored as it is."""
    TRUNCATED = "truncated"
    """It was cut at the length limit and is not scored, since it is unfinished (a task's `at_limit`)."""


class Source(StrEnum):
    """Where a completion comes from."""

    STUDENT = "student"
    DATA = "data"
    TEACHER = "teacher"
    MIXED = "mixed"
    """Sampled by student and teacher together (rlgkd.ops.behaviour_policy)."""
    REPLAY = "replay"
    """Sampled by the student in an earlier update, and distilled again (rlgkd.agents.replay)."""


ON_POLICY = (Source.STUDENT, Source.MIXED)
"""Sources sampled with the student, with recorded log-probabilities: the policy term applies to them."""
OFF_POLICY = (Source.DATA, Source.TEACHER)
"""Sources that the student has no part in."""


Message = Mapping[str, Any]
"""A message of a conversation: its `role`, its `content`, and what else a chat template reads, such as `tool_calls`."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A prompt, its reference (empty if there is none), and further columns that a reward may ask for by name."""

    key: str
    """Unique and stable, such as `train/0/17`; the stream of random numbers for sampling depends on it."""
    prompt: str
    """As text; of a conversation, all its messages with their roles, or the one message of a user's alone."""
    reference: str = ""
    references: tuple[str, ...] = ()
    """All right answers, if the data has a list of them; `reference` is the first."""
    messages: tuple[Message, ...] = ()
    """The prompt as a conversation, for the chat template; empty if the prompt is a text."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of tools, which the chat template shows the policy."""
    columns: Mapping[str, object] = field(default_factory=dict)


SIBLING = "sibling"
"""The column of an item that has a right text of the same group, for a teacher that reads one."""


def reads_sibling(template: str) -> bool:
    """Whether a teacher's prompt has the text of a sibling in it: it is that column, or has its name in braces.

    Examples:
        >>> reads_sibling("sibling"), reads_sibling("{sibling} {prompt}"), reads_sibling("{{sibling}}")
        (True, True, False)
    """
    return template == SIBLING or f"{{{SIBLING}}}" in re.sub(r"\{\{|\}\}", "", template)


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a teacher reads prompts and replies that are written otherwise for its student (rlgkd.lm.own_format)."""

    encode_prompt: Callable[[Item], list[int]]
    """The token ids of an item's prompt in the teacher's own chat template."""
    encode_reply: Callable[[str, bool], list[int]] | None
    """Those of a reply, by its text and whether an end token has closed the turn before it; None: the student's ids."""
    end: int
    """The token with which the student's answer ends."""
    own_end: int
    """The token with which the teacher's does."""
    example: str
    """A prompt as the student reads it, for messages."""
    own_example: str
    """The same as the teacher reads it."""
    longer: int
    """Tokens by which an episode may be longer for the teacher than for the student."""
    replies: bool
    """Whether replies may follow the prompt."""
    end_ids: frozenset[int] = frozenset()
    """The tokens that close a turn, of either model."""
    template: str = ""
    """The template of prompts in which the teacher sees more than the student; empty if it does not."""

    @property
    def reads_sibling(self) -> bool:
        """Whether an item must have a right text of its group in the column SIBLING; without it, it is read plain."""
        return reads_sibling(self.template)


REWARD_ARGUMENTS: Mapping[str, str] = {
    "prompt": "prompts",
    "completion": "completions",
    "reference": "references",
    "item": "items",
}
"""A reward's own arguments: the name for one sample -> the name for a batch. No column of the data may hide them."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The task reward of one completion and its named parts. A NaN reward marks a failure."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] | None = field(default=None, repr=False)
    """The reward of each action, which sum to `reward`; None if all of it belongs to the last action."""
    failure: str = field(default="", repr=False)
    """Why the reward failed, in one line; empty if it did not fail or was not evaluated."""


@runtime_checkable
class Task(Protocol):
    """The interface of an environment to the agents: its items, tokenization and reward. `rlgkd.envs` implements it."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    max_new_tokens: int
    """The limit on all tokens after the prompt, the environment's own included."""
    at_limit: str
    """`terminate`: a completion that reaches the limit is scored as it is; `truncate`: it is not scored."""

    def size(self, split: Split) -> int:
        """The number of distinct items in the split."""
        ...

    def item(self, split: Split, seed: int, index: int) -> Item:
        """The item at stream index `index` (any >= 0) in the order of `seed`; a function of the arguments alone."""
        ...

    def encode_prompt(self, item: Item) -> list[int]:
        """The prompt's token ids, at most `max_prompt_tokens`."""
        ...

    def encode_completion(self, text: str) -> list[int]:
        """The token ids of a completion given as text, end token included."""
        ...

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text of a completion without its end token."""
        ...

    def reply(self, item: Item, turns: Sequence[str]) -> str | None:
        """The environment's message after `turns` (policy and environment alternating); None ends the episode."""
        ...

    def encode_reply(self, text: str, *, closed: bool = True) -> list[int]:
        """The token ids of a reply that follows an end token or, if not `closed`, a stop string without one."""
        ...

    def score(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> list[Score]:
        """The task reward, called once per batch of finished episodes.

        Args:
            items: The item of each episode.
            completions: The text of each episode's last turn.
            turns: All turns of each episode, policy and environment alternating; empty if each has only one.
            ids: The actions of each episode, over all its turns; empty if they are not known.
        """
        ...

    def quality(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        """Quality measures for evaluation that training never uses (an oracle, the overlap with the reference)."""
        ...


class PendingScores(Protocol):
    """Pending scores of an asynchronous reward (a future)."""

    def done(self) -> bool:
        """Whether the scores are available."""
        ...

    def result(self) -> list[Score]:
        """Wait for the scores and return them."""
        ...

    def cancel(self) -> None:
        """Give the scores up."""
        ...


@runtime_checkable
class AsyncTask(Protocol):
    """Optional protocol of tasks whose reward is I/O-bound, in addition to `Task`."""

    is_async: bool
    """Whether this task's reward is asynchronous."""

    def submit(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> PendingScores:
        """Start scoring as `score` would, without waiting. Batches are submitted one at a time."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished text: a token sequence, and which of its tokens were actions."""

    item: Item
    tokens_T: np.ndarray
    """int64: prompt, then completion."""
    action_mask_T: np.ndarray
    """bool: True where the token was chosen as an action (the end token included, padding never)."""
    logp_T: np.ndarray
    """float32, nats: the log-probability with which each action was sampled; 0 elsewhere and for tokens from data."""
    entropy_T: np.ndarray
    """float32, nats: the entropy of the distribution from which each action was sampled; 0 where `logp_T` is."""
    stop: StopReason
    source: Source
    sample: int
    """The index within the prompt's group, from 0."""
    text: str
    """The completion; with several turns, the policy's last one."""
    turns: tuple[str, ...] = ()
    """All turns, the policy's and the environment's alternating; empty if there is only one."""

    @cached_property
    def length(self) -> int:
        """The number of actions."""
        return int(self.action_mask_T.sum())

    @property
    def transcript(self) -> str:
        """All text after the prompt, the environment's turns included, one line per turn."""
        return "\n".join(self.turns) or self.text

    def scored(self, score: Score) -> Trajectory:
        """The episode with what it earned."""
        own = {field.name: getattr(self, field.name) for field in fields(Episode)}
        return Trajectory(**own, score=score)


@dataclass(frozen=True, kw_only=True)
class Trajectory(Episode):
    """An episode and what it earned."""

    score: Score


@dataclass(frozen=True)
class RowLayout:
    """The layout of one row of a batch, known on the host."""

    same_prompt: int
    """The index of the batch's first row with the same prompt."""
    prompt: int
    """The number of tokens before the first action."""
    length: int
    """The number of tokens without padding."""
    actions: np.ndarray
    """The columns of the actions."""


def action_rows(layouts: Sequence[RowLayout]) -> np.ndarray:
    """[N], the row of each action, in row order."""
    return np.repeat(np.arange(len(layouts)), [len(layout.actions) for layout in layouts])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Trajectories as right-padded tensors on one device."""

    tokens_BT: Tensor
    attention_mask_BT: Tensor
    action_mask_BT: Tensor
    logp_BT: Tensor
    layouts_B: tuple[RowLayout, ...] = ()
    """Host-side row layouts, so that nothing that follows from them waits for the device; empty if unknown."""

    @cached_property
    def action_index_N(self) -> tuple[Tensor, Tensor]:
        """The row and the column of each action, both [N], in row order."""
        if not self.layouts_B:
            row_N, column_N = self.action_mask_BT.nonzero(as_tuple=True)
            return row_N, column_N
        columns = np.concatenate([layout.actions for layout in self.layouts_B])
        device = self.tokens_BT.device
        return to_device(action_rows(self.layouts_B), device), to_device(columns, device)

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        if self.tokens_BT.device == device:
            return self
        moved = {
            name: getattr(self, name).to(device)
            for name in ("tokens_BT", "attention_mask_BT", "action_mask_BT", "logp_BT")
        }
        return replace(self, **moved)

    @staticmethod
    def collate(trajectories: Sequence[Episode], *, pad: int, device: torch.device | str = "cpu") -> Batch:
        """Pad to the longest with `pad`; the attention mask separates padding from a token that equals `pad`."""
        size = (len(trajectories), max(len(t.tokens_T) for t in trajectories))
        first_rows: dict[bytes, int] = {}
        layouts: list[RowLayout] = []
        tokens_BT = np.full(size, pad, dtype=np.int64)
        attention_mask_BT = np.zeros(size, dtype=np.int64)
        action_mask_BT = np.zeros(size, dtype=bool)
        logp_BT = np.zeros(size, dtype=np.float32)
        for row, t in enumerate(trajectories):
            length = len(t.tokens_T)
            tokens_BT[row, :length] = t.tokens_T
            attention_mask_BT[row, :length] = 1
            action_mask_BT[row, :length] = t.action_mask_T
            logp_BT[row, :length] = t.logp_T
            actions = np.flatnonzero(t.action_mask_T)
            prompt = t.tokens_T[: actions[0]]
            same_prompt = first_rows.setdefault(prompt.tobytes(), row)
            layouts.append(RowLayout(same_prompt, len(prompt), length, actions))
        return Batch(
            tokens_BT=to_device(tokens_BT, device),
            attention_mask_BT=to_device(attention_mask_BT, device),
            action_mask_BT=to_device(action_mask_BT, device),
            logp_BT=to_device(logp_BT, device),
            layouts_B=tuple(layouts),
        )
