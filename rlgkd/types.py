"""What flows between the rooms: items, scores, trajectories, batches, and the protocols at the seams.

Dimensions, as suffixes of tensor names everywhere:

    P prompt    G sample of one prompt's group    B sequence    T token    N action (a flat run of tokens that were
    chosen, over all sequences of a batch)    V vocabulary    H hidden

A trajectory is one token sequence with an action mask. Nothing assumes that the actions form one block behind one
prompt: an environment may put tokens of its own in between, unmasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Split = str
"""`train`, `validation` or `test`."""


class StopReason(StrEnum):
    """Why a completion ended."""

    END = "end"
    """It wrote the end token or a stop string."""
    LENGTH = "length"
    """It reached the length limit, and is scored as it stands."""
    TRUNCATED = "truncated"
    """It was cut at the length limit, which is no end: it is not scored (a task's `at_limit`)."""


class Source(StrEnum):
    """Who wrote a completion."""

    STUDENT = "student"
    DATA = "data"
    TEACHER = "teacher"
    MIXED = "mixed"
    """Student and teacher together (rlgkd.ops.behaviour_policy)."""


ON_POLICY = (Source.STUDENT, Source.MIXED)
"""Sources whose texts were sampled, by log-probabilities that are recorded: the policy term applies to them."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to write: a prompt, its reference (empty where there is none), and what rewards may ask for by name."""

    key: str
    """Unique and stable, such as `train/0/17`; the sampling stream belongs to it."""
    prompt: str
    reference: str = ""
    columns: Mapping[str, object] = field(default_factory=dict)


REWARD_ARGUMENTS: Mapping[str, str] = {
    "prompt": "prompts",
    "completion": "completions",
    "reference": "references",
    "item": "items",
}
"""A reward's own arguments: the name for one sample -> the name for a batch. No column of the data may hide them."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The task reward of one completion and the parts it is made of. NaN marks a reward that failed."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] | None = field(default=None, repr=False)
    """What each action earned, which sums to the reward; None where all of it is the last one's."""
    failure: str = field(default="", repr=False)
    """Why the reward failed, in one line; empty where it did not, or nobody asked for it."""


@runtime_checkable
class Task(Protocol):
    """What an environment offers to the fast path: its items, its tokens, its reward. `rlgkd.envs` implements it."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    max_new_tokens: int
    """Of all that stands behind the prompt, the environment's own tokens included."""
    at_limit: str
    """`terminate`: a text that reaches the limit is scored as it stands; `truncate`: it is not scored."""

    def size(self, split: Split) -> int:
        """How many distinct items the split has."""
        ...

    def item(self, split: Split, seed: int, index: int) -> Item:
        """The item at `index` of the stream that `seed` orders; any index >= 0, a function of the arguments alone."""
        ...

    def encode_prompt(self, item: Item) -> list[int]:
        """The prompt's token ids, at most `max_prompt_tokens`."""
        ...

    def encode_completion(self, text: str) -> list[int]:
        """The ids of a completion given as text, end token included."""
        ...

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text of a completion, end token left out."""
        ...

    def reply(self, item: Item, turns: Sequence[str]) -> str | None:
        """What the environment says behind the last of `turns` (the policy's and its own by turns); None: no more."""
        ...

    def encode_reply(self, text: str, *, closed: bool = True) -> list[int]:
        """The ids of a reply, as they stand behind an end token, or, not `closed`, behind a stop string without one."""
        ...

    def score(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> list[Score]:
        """The task reward, once per batch of finished episodes.

        Args:
            items: What was to be written.
            completions: What was written in the last turn.
            turns: All turns of each, the policy's and the environment's by turns; empty where each has but one.
            ids: The actions of each, over all its turns; empty where they are not known.
        """
        ...

    def quality(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        """Measures that training never sees (an oracle, an overlap with the reference), for evaluation."""
        ...


class PendingScores(Protocol):
    """Scores that a reward has been asked for and that may still be on their way."""

    def done(self) -> bool:
        """Whether they are there."""
        ...

    def result(self) -> list[Score]:
        """Wait for them."""
        ...

    def cancel(self) -> None:
        """Do without them."""
        ...


@runtime_checkable
class AsyncTask(Protocol):
    """What a task offers beside `Task` if its reward may wait for others and compute nothing meanwhile."""

    is_async: bool
    """Whether it does."""

    def submit(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> PendingScores:
        """As `score`, without waiting. Batches are asked for one at a time."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One finished episode: a token sequence, which tokens were actions, and what they earned."""

    item: Item
    tokens_T: np.ndarray
    """int64: prompt, then completion."""
    action_mask_T: np.ndarray
    """bool: True where the token was chosen as an action (the end token included, padding never)."""
    logp_T: np.ndarray
    """float32, nats: log-probability with which an action was sampled; 0 elsewhere and for tokens from data."""
    entropy_T: np.ndarray
    """float32, nats: of the distribution from which an action was sampled; 0 as `logp_T`."""
    stop: StopReason
    source: Source
    sample: int
    """Which of the prompt's group, from 0."""
    text: str
    """Of the last turn."""
    score: Score
    turns: tuple[str, ...] = ()
    """All of them, the policy's and the environment's by turns; empty where there is but one."""

    @cached_property
    def length(self) -> int:
        """Number of actions."""
        return int(self.action_mask_T.sum())

    @property
    def transcript(self) -> str:
        """All that was written behind the prompt, the environment's turns in it, a line each."""
        return "\n".join(self.turns) or self.text


@dataclass(frozen=True)
class RowLayout:
    """What stands where in a row of a batch."""

    same_prompt: int
    """The first row of the batch with the same prompt."""
    prompt: int
    """Tokens before the first action."""
    length: int
    """Tokens without padding."""
    actions: np.ndarray
    """Columns of the actions."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Trajectories as right-padded tensors on one device."""

    tokens_BT: Tensor
    attention_mask_BT: Tensor
    action_mask_BT: Tensor
    logp_BT: Tensor
    layouts_B: tuple[RowLayout, ...] = ()
    """Of each row, known without asking the device; () where nobody has told."""

    @staticmethod
    def collate(trajectories: Sequence[Trajectory], *, pad: int, device: torch.device | str = "cpu") -> Batch:
        """Pad to the longest with `pad`; the attention mask tells padding from a token that happens to equal it."""
        size = (len(trajectories), max(len(t.tokens_T) for t in trajectories))
        first: dict[bytes, int] = {}
        places: list[RowLayout] = []
        tokens = np.full(size, pad, dtype=np.int64)
        attention = np.zeros(size, dtype=np.int64)
        action = np.zeros(size, dtype=bool)
        logp = np.zeros(size, dtype=np.float32)
        for row, t in enumerate(trajectories):
            n = len(t.tokens_T)
            tokens[row, :n], attention[row, :n] = t.tokens_T, 1
            action[row, :n], logp[row, :n] = t.action_mask_T, t.logp_T
            actions = np.flatnonzero(t.action_mask_T)
            prompt = t.tokens_T[: actions[0]]
            places.append(RowLayout(first.setdefault(prompt.tobytes(), row), len(prompt), n, actions))
        tokens_BT, attention_BT, action_BT, logp_BT = (
            torch.from_numpy(array).to(device) for array in (tokens, attention, action, logp)
        )
        return Batch(
            tokens_BT=tokens_BT, attention_mask_BT=attention_BT, action_mask_BT=action_BT, logp_BT=logp_BT,
            layouts_B=tuple(places),
        )  # fmt: skip
