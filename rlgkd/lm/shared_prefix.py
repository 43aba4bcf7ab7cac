"""Samples of one prompt read together: the prompt once, and behind it its completions, which do not see each other.

A row is [prompt, completion, completion, ...]; each completion's positions begin where the prompt ends, and a mask lets
it see the prompt and itself. States and gradients are those of rows of their own, for fewer tokens: with groups of 4
and prompts eight times as long as completions, a third.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rlgkd.lm.fast import llama
from rlgkd.lm.fast.packed import PackedTokens, unseen
from rlgkd.lm.linear import wide_products
from rlgkd.types import RowLayout

Beginning = TypeVar("Beginning", str, tuple[int, ...])
"""What tells which rows begin alike: a name, or tokens."""
SHARING = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Families in which a mask and positions of one's own are known to mean what they say (a test holds each to it)."""


def supports_shared_prefix(config: PreTrainedConfig) -> bool:
    """Whether rows may share what they begin with: where every layer sees all that came before, and nothing else."""
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    known = config.model_type in SHARING and not windows and not getattr(config, "sliding_window", None)
    return known and config._attn_implementation in ("sdpa", "eager")


@dataclass(frozen=True)
class Shared:
    """Rows with shared prompts: R rows of T tokens."""

    token_RT: Tensor
    """Where each token stands in the flattened [B, T] of the rows there were; padding repeats the first."""
    position_RT: Tensor
    there_RT: Tensor
    """bool: false where padding stands."""
    mask_R1TT: Tensor
    """bool: whether the token of the third axis sees that of the last; padding sees itself."""
    before_N: Tensor
    """Where the state that predicts each action stands in the flattened [R, T], in the order of the rows there were."""

    def states(self, body: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
        """[N, H]: the states that predict the actions."""
        return self.states_and_head(body, tokens_BT)[0]

    def states_and_head(
        self, body: PreTrainedModel, tokens_BT: Tensor, head_VH: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`states`, and the head's weight as of `rlgkd.lm.fast.llama.read`."""
        tokens_RT = tokens_BT.flatten()[self.token_RT]
        if llama.readable(body):
            texts = PackedTokens.of(tokens_RT, self.position_RT, self.there_RT, self.mask_R1TT[:, 0], body.dtype)
            return llama.read(body, texts, texts.number(self.before_N), head_VH=head_VH)
        # As an addend, which both kinds of attention take: a bool mask would be one to the eager one.
        with wide_products():
            states_RTH: Tensor = body(
                input_ids=tokens_RT, attention_mask=unseen(self.mask_R1TT, body.dtype), position_ids=self.position_RT,
                use_cache=False,
            ).last_hidden_state  # fmt: skip
        return states_RTH.flatten(0, 1)[self.before_N], head_VH


def pack_shared_prefixes(
    places: Sequence[RowLayout], width: int, *, hidden: int, device: torch.device
) -> Shared | None:
    """How rows of `width` tokens, which `places` tell of, are put together; None where nothing is gained.

    Sharing saves a row's P prompt tokens and costs attention over completions that it masks. A layer's work per token
    is that of 6 `hidden` keys (12 hidden^2 multiplications against 2 hidden for a key), so k completions of c tokens
    cost (6 hidden T + T^2) / k each, with T = P + k c: least at k = sqrt(P (6 hidden + P)) / c.
    """
    groups: dict[int, list[int]] = {}
    for row, place in enumerate(places):
        groups.setdefault(place.same_prompt, []).append(row)
    bins: list[list[int]] = []
    for rows in groups.values():
        prompt = places[rows[0]].prompt
        mean = sum(places[row].length - prompt for row in rows) / len(rows)
        size = max(1, int(math.sqrt(prompt * (6 * hidden + prompt)) / mean))
        bins += [rows[start : start + size] for start in range(0, len(rows), size)]

    def packed(rows: Sequence[int]) -> int:
        prompt = places[rows[0]].prompt
        return prompt + sum(places[row].length - prompt for row in rows)

    longest = max(map(packed, bins), default=0)
    if len(bins) * longest >= len(places) * width:  # groups of unequal sizes may cost more padding than they save
        return None
    token_RT = np.zeros((len(bins), longest), dtype=np.int64)
    position_RT = np.zeros_like(token_RT)
    segment_RT = np.full_like(token_RT, -1)
    before: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(places)
    for number, rows in enumerate(bins):
        end = prompt = places[rows[0]].prompt
        token_RT[number, :prompt] = rows[0] * width + np.arange(prompt)
        position_RT[number, :prompt] = np.arange(prompt)
        segment_RT[number, :prompt] = 0
        for segment, row in enumerate(rows, start=1):
            start, end = end, end + places[row].length - prompt
            behind = np.arange(prompt, places[row].length)
            token_RT[number, start:end] = row * width + behind
            position_RT[number, start:end] = behind
            segment_RT[number, start:end] = segment
            at = places[row].actions - 1
            before[row] = number * longest + np.where(at < prompt, at, at - prompt + start)
    token, position, segment_of = (torch.from_numpy(a).to(device) for a in (token_RT, position_RT, segment_RT))
    own_RTT = (segment_of[:, None, :] == 0) | (segment_of[:, None, :] == segment_of[:, :, None])
    own_RTT &= torch.ones(longest, longest, dtype=torch.bool, device=device).tril() & (segment_of[:, None, :] >= 0)
    own_RTT |= torch.eye(longest, dtype=torch.bool, device=device)
    return Shared(
        token, position, segment_of >= 0, own_RTT[:, None], torch.from_numpy(np.concatenate(before)).to(device)
    )


def last_token_layouts(rows: Sequence[Sequence[int]]) -> list[RowLayout]:
    """Of rows of tokens of each of which the last state is wanted: what neighbours in their order begin with is shared.

    Rows stand together that have half of the shorter one in common.
    """
    order = sorted(range(len(rows)), key=lambda row: list(rows[row]))
    groups: list[list[int]] = []
    prompts: list[int] = []
    for row in order:
        common = _common(rows[groups[-1][0]], rows[row]) if groups else 0
        if groups and 2 * common >= min(len(rows[groups[-1][0]]), len(rows[row])):
            groups[-1].append(row)
            prompts[-1] = min(prompts[-1], common, len(rows[row]) - 1)
        else:
            groups.append([row])
            prompts.append(len(rows[row]) - 1)
    places: dict[int, RowLayout] = {}
    for group, prompt in zip(groups, prompts, strict=True):
        for row in group:
            places[row] = RowLayout(group[0], prompt, len(rows[row]), np.array([len(rows[row])]))
    return [places[row] for row in range(len(rows))]


def order_by_prefix(lengths: Sequence[int], beginnings: Sequence[Beginning]) -> list[int]:
    """An order of rows, the longest first, in which those of one beginning stand together, behind their longest.

    Example:
        >>> order_by_prefix([3, 9, 5, 4], ["a", "b", "a", "b"])
        [1, 3, 2, 0]
    """
    longest: dict[Beginning, int] = {}
    for beginning, length in zip(beginnings, lengths, strict=True):
        longest[beginning] = max(length, longest.get(beginning, 0))

    def place(row: int) -> tuple[int, Beginning, int]:
        return -longest[beginnings[row]], beginnings[row], -lengths[row]

    return sorted(range(len(lengths)), key=place)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
