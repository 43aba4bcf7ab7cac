"""Sampling completions with a KV cache, recording the log-probabilities and entropies they were sampled with.

A prompt is read once for the samples of its group; rows that finish leave the batch (rlgkd.lm.decoders). Every row and
step has one uniform number of its own, given by the caller, so a sample does not depend on what else is in the batch.

With a `CoSampler` two models choose each token together: both run in lockstep on the same tokens.

Filters (rlgkd.ops.logit_filters) are for evaluation; stop strings are rlgkd.lm.stop_strings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgkd.lm.decoders import writer
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.policy_loss import log_probability_and_entropy
from rlgkd.ops.sampling import sample

OnStep = Callable[[int], bool]
"""Called after each lockstep step with the number of tokens it made; False stops the decoding."""


@dataclass(frozen=True)
class Completion:
    """Sampled token ids (the end token included if it was written), and of each what it was sampled with, in nats."""

    ids: list[int]
    logp: list[float]
    """Its log-probability."""
    entropy: list[float]
    """Of the distribution it is from."""


@dataclass(frozen=True)
class CoSampler:
    """A second model with the first one's vocabulary, and how the two choose (rlgkd.ops.behaviour_policy)."""

    lm: LanguageModel
    mix: Callable[[Tensor, Tensor], Tensor]
    """(co_sampler's logits, the policy's logits) -> log-probabilities, all [B, V]."""


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    uniforms_BT: np.ndarray | None,
    group: int = 1,
    max_new_tokens: int | Sequence[int],
    on_step: OnStep | None = None,
    co_sampler: CoSampler | None = None,
    filters: Filters | None = None,
    should_stop: Callable[[Sequence[int]], bool] | None = None,
) -> list[Completion]:
    """Complete each prompt `group` times; row p * group + g is sample g of prompt p.

    Args:
        lm: The policy; its temperature applies.
        prompts: Token ids, at least one each.
        uniforms_BT: [len(prompts) * group, max_new_tokens or more] in [0, 1); None decodes greedily.
        group: Samples for each prompt.
        max_new_tokens: Where a completion stops that does not end by itself, the same for all or one for each row.
        on_step: Called after each step; if it returns False the completions are returned as they stand.
        co_sampler: Chooses with the policy; what is recorded is of the distribution of the two together.
        filters: What is sampled from is what they leave of the distribution, and what is recorded is of that.
        should_stop: Whether the ids of a completion end it, beside the end token; asked after each of its tokens.
    """
    models = [lm] if co_sampler is None else [lm, co_sampler.lm]
    rows = len(prompts) * group
    limit_B = np.broadcast_to(np.asarray(max_new_tokens), (rows,))
    at_once = min(rows, lm.rows_at_once or rows)
    size = max(len(prompts[row // group]) + int(limit_B[row]) for row in range(rows))
    writers = [writer(model, at_once, size) for model in models]
    # Arrays, and few calls on them: what is done for each row and step takes longer than small models do.
    ids_BT = np.zeros((rows, int(limit_B.max())), dtype=np.int64)
    places: list[tuple[np.ndarray, np.ndarray]] = []
    recorded: list[tuple[Tensor, Tensor]] = []  # the host waits for it at the end alone
    length_B = np.zeros(rows, dtype=np.int64)
    active = np.zeros(0, dtype=np.int64)
    begun, end = 0, lm.end
    while True:
        room = at_once - len(active)
        # Once a quarter of the places is free: a prompt read alone costs about what eight cost together.
        if begun < rows and (not len(active) or (4 * room >= at_once and all(each.admits for each in writers))):
            new = np.arange(begun, min(rows, begun + room))
            first = begun // group
            for each in writers:
                each.admit(prompts[first : new[-1] // group + 1], new // group - first)
            active, begun = np.concatenate([active, new]), begun + len(new)
        logits_BV = writers[0].logits()
        if co_sampler is not None:
            logits_BV = co_sampler.mix(writers[1].logits(), logits_BV)
        if filters:
            logits_BV = filters(logits_BV)
        place = active, length_B[active]
        if uniforms_BT is None:
            token_B = logits_BV.argmax(-1)
            logp_B, entropy_B = log_probability_and_entropy(logits_BV, token_B)
        else:
            token_B, logp_B, entropy_B = sample(logits_BV, torch.from_numpy(uniforms_BT[place]).to(lm.device))
        ids_B, after_B = token_B.cpu().numpy(), place[1] + 1
        ids_BT[place], length_B[active] = ids_B, after_B
        places.append(place)
        recorded.append((logp_B, entropy_B))
        if on_step is not None and not on_step(len(active)):
            break
        going = (ids_B != end) & (after_B < limit_B[active])
        if should_stop is not None:
            for n in np.flatnonzero(going):
                going[n] = not should_stop(_written(ids_BT, length_B, active[n]))
        if not going.all():
            kept = np.flatnonzero(going)
            active, token_B = active[kept], token_B[torch.from_numpy(kept).to(lm.device)]
            for each in writers:
                each.keep(kept, complete=begun == rows)
        if len(active):
            for each in writers:
                each.write(token_B)
        elif begun == rows:
            break
    place_N = tuple(np.concatenate(arrays) for arrays in zip(*places, strict=True))
    tables: list[np.ndarray] = [ids_BT]
    for values in zip(*recorded, strict=True):
        tables.append(np.zeros(ids_BT.shape))
        tables[-1][place_N] = torch.cat(values).cpu().numpy()
    return [Completion(*(_written(table_BT, length_B, row) for table_BT in tables)) for row in range(rows)]


def _written(values_BT: np.ndarray, length_B: np.ndarray, row: int) -> list[Any]:
    """What a row has so far."""
    values: list[Any] = values_BT[row, : length_B[row]].tolist()
    return values
