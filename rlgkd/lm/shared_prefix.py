"""Samples of one prompt in one row: the prompt once, followed by its completions, which do not see each other.

A row is [prompt, completion, completion, ...]. The positions of each completion continue from the prompt's end, and a
mask lets it see the prompt and itself. States and gradients are those of separate rows, for fewer tokens: a third, with
groups of 4 and prompts eight times as long as completions.

Dimensions: B rows as they are given, R packed rows, T columns, N actions, H hidden, V vocabulary.
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

from rlgkd.devices import to_device
from rlgkd.lm import fast
from rlgkd.lm.attention_mask import additive_mask
from rlgkd.lm.linear import onednn_linears
from rlgkd.types import RowLayout

Prefix = TypeVar("Prefix", str, tuple[int, ...])
"""Equal for rows that begin alike: the name of a prompt, or tokens."""
FAMILIES = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Architectures that are known to honour a given mask and given positions (tests/lm/test_shared_prefix.py)."""


def supports_shared_prefix(config: PreTrainedConfig) -> bool:
    """Return whether rows may share a prefix: every layer sees all earlier tokens and nothing else."""
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    known = config.model_type in FAMILIES and not windows and not getattr(config, "sliding_window", None)
    return known and config._attn_implementation in ("sdpa", "eager")


@dataclass(frozen=True)
class SharedPrefixBatch:
    """How R packed rows of T columns are made from B rows."""

    source_index_RT: Tensor
    """The flat index of each token in the given [B, T]; the first one at padding."""
    position_RT: Tensor
    is_token_RT: Tensor
    """bool: false at padding."""
    visible_R1TT: Tensor
    """bool: whether the token of the third axis sees that of the last; padding sees itself."""
    predictor_N: Tensor
    """The flat index in [R, T] of the state that predicts each action, in the order of the given rows."""

    def states(self, body: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
        """[N, H]: the states that predict the actions."""
        return self.states_and_head(body, tokens_BT)[0]

    def states_and_head(
        self, body: PreTrainedModel, tokens_BT: Tensor, head_VH: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`states`, and the head's weight as `rlgkd.lm.fast.forward` returns it."""
        tokens_RT = tokens_BT.flatten()[self.source_index_RT]
        if fast.supported(body, "forward"):
            packed = fast.PackedTokens.pack(
                tokens_RT, self.position_RT, self.is_token_RT, self.visible_R1TT[:, 0], body.dtype
            )
            return fast.forward(body, packed, packed.packed_index(self.predictor_N), head_VH=head_VH)
        # An additive mask, which both implementations take: eager attention would add a bool mask to the scores too.
        with onednn_linears(tokens_BT.device):
            states_RTH: Tensor = body(
                input_ids=tokens_RT,
                attention_mask=additive_mask(self.visible_R1TT, body.dtype),
                position_ids=self.position_RT,
                use_cache=False,
            ).last_hidden_state
        return states_RTH.flatten(0, 1)[self.predictor_N], head_VH


def pack_shared_prefixes(
    layouts: Sequence[RowLayout], width: int, *, hidden: int, device: torch.device
) -> SharedPrefixBatch | None:
    """Plan the packing of rows that share prompts; None where it saves nothing.

    Args:
        layouts: The layout of each row.
        width: Columns of the given rows, padding included.
        hidden: The model's hidden size, for the estimate of what is worth sharing (see `_packed_rows`).
        device: For the plan's tensors.
    """
    packed_rows = _packed_rows(layouts, hidden)
    longest = max((_packed_length(layouts, rows) for rows in packed_rows), default=0)
    if len(packed_rows) * longest >= len(layouts) * width:  # groups of unequal sizes may pad more than they save
        return None
    source_index_RT = np.zeros((len(packed_rows), longest), dtype=np.int64)
    position_RT = np.zeros_like(source_index_RT)
    segment_RT = np.full_like(source_index_RT, -1)  # 0 the prompt, from 1 on its completions, -1 padding
    predictors: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(layouts)
    for index, rows in enumerate(packed_rows):
        prompt = layouts[rows[0]].prompt
        source_index_RT[index, :prompt] = rows[0] * width + np.arange(prompt)
        position_RT[index, :prompt] = np.arange(prompt)
        segment_RT[index, :prompt] = 0
        end = prompt
        for segment, row in enumerate(rows, start=1):
            start = end
            end = start + layouts[row].length - prompt
            columns = np.arange(prompt, layouts[row].length)
            source_index_RT[index, start:end] = row * width + columns
            position_RT[index, start:end] = columns
            segment_RT[index, start:end] = segment
            before = layouts[row].actions - 1
            predictors[row] = index * longest + np.where(before < prompt, before, before - prompt + start)
    source_index, position, segments = (
        to_device(array, device) for array in (source_index_RT, position_RT, segment_RT)
    )
    return SharedPrefixBatch(
        source_index_RT=source_index,
        position_RT=position,
        is_token_RT=segments >= 0,
        visible_R1TT=_visible_tokens(segments)[:, None],
        predictor_N=to_device(np.concatenate(predictors), device),
    )


def _packed_rows(layouts: Sequence[RowLayout], hidden: int) -> list[list[int]]:
    """The given rows that go into each packed row.

    To share a prompt of P tokens saves its work for all completions but one, and costs attention scores between
    completions, which are masked. A layer's work for a token is that of scores with 6 `hidden` keys (12 hidden^2
    multiplications against 2 hidden for a key), so k completions of c tokens cost (6 hidden T + T^2) / k each, with
    T = P + k c: least at k = sqrt(P (6 hidden + P)) / c.
    """
    groups: dict[int, list[int]] = {}
    for row, layout in enumerate(layouts):
        groups.setdefault(layout.same_prompt, []).append(row)
    packed_rows: list[list[int]] = []
    for rows in groups.values():
        prompt = layouts[rows[0]].prompt
        mean = sum(layouts[row].length - prompt for row in rows) / len(rows)
        size = max(1, int(math.sqrt(prompt * (6 * hidden + prompt)) / max(1, mean)))
        packed_rows += [rows[start : start + size] for start in range(0, len(rows), size)]
    return packed_rows


def _packed_length(layouts: Sequence[RowLayout], rows: Sequence[int]) -> int:
    """Tokens of a packed row."""
    prompt = layouts[rows[0]].prompt
    return prompt + sum(layouts[row].length - prompt for row in rows)


def _visible_tokens(segment_RT: Tensor) -> Tensor:
    """[R, T, T]: true where a token sees another: an earlier one of the prompt or of its own segment, or itself."""
    length = segment_RT.shape[1]
    key_R1T = segment_RT[:, None, :]
    visible_RTT = (key_R1T == 0) | (key_R1T == segment_RT[:, :, None])
    visible_RTT &= torch.ones(length, length, dtype=torch.bool, device=segment_RT.device).tril() & (key_R1T >= 0)
    # Padding sees itself: for a row that sees nothing, torch's attention on a GPU has returned NaN, though the mask was
    # finite (pytorch/pytorch#110213).
    visible_RTT |= torch.eye(length, dtype=torch.bool, device=segment_RT.device)
    return visible_RTT


def last_token_layouts(rows: Sequence[Sequence[int]]) -> list[RowLayout]:
    """Layouts of rows whose last state alone is wanted: rows that share half of the shorter one are a group.

    The group's common tokens are its prompt, and each row's one action is the token after its end.
    """
    order = sorted(range(len(rows)), key=lambda row: list(rows[row]))
    groups: list[list[int]] = []
    prompts: list[int] = []
    for row in order:
        common = _common_prefix_length(rows[groups[-1][0]], rows[row]) if groups else 0
        if groups and 2 * common >= min(len(rows[groups[-1][0]]), len(rows[row])):
            groups[-1].append(row)
            prompts[-1] = min(prompts[-1], common, len(rows[row]) - 1)
        else:
            groups.append([row])
            prompts.append(len(rows[row]) - 1)
    layouts: dict[int, RowLayout] = {}
    for group, prompt in zip(groups, prompts, strict=True):
        for row in group:
            layouts[row] = RowLayout(group[0], prompt, len(rows[row]), np.array([len(rows[row])]))
    return [layouts[row] for row in range(len(rows))]


def order_by_prefix(lengths: Sequence[int], prefixes: Sequence[Prefix]) -> list[int]:
    """Order rows by falling length, but keep rows of one prefix together, where the longest of them comes.

    Examples:
        >>> order_by_prefix([3, 9, 5, 4], ["a", "b", "a", "b"])
        [1, 3, 2, 0]
    """
    longest: dict[Prefix, int] = {}
    for prefix, length in zip(prefixes, lengths, strict=True):
        longest[prefix] = max(length, longest.get(prefix, 0))

    def sort_key(row: int) -> tuple[int, Prefix, int]:
        return -longest[prefixes[row]], prefixes[row], -lengths[row]

    return sorted(range(len(lengths)), key=sort_key)


def _common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both rows begin."""
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
