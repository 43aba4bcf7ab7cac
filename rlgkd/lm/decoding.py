"""Sampling completions with a KV cache, recording the log-probabilities they were sampled with.

A prompt is read once for the samples of its group; rows that finish leave the batch (rlgkd.lm.writing). Every row and
step has one uniform number of its own, given by the caller, so a sample does not depend on what else is in the batch.

With a `Companion` two models choose each token together: both run in lockstep on the same tokens.

Filters (rlgkd.ops.filters) are for evaluation; stop strings are rlgkd.lm.stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlgkd.lm.model import LanguageModel
from rlgkd.lm.writing import writer
from rlgkd.ops.filters import Filters
from rlgkd.ops.sampling import sample

OnStep = Callable[[int], bool]
"""Called after each lockstep step with the number of tokens it made; False stops the decoding."""


@dataclass(frozen=True)
class Completion:
    """Sampled token ids (the end token included if it was written) and their log-probabilities in nats."""

    ids: list[int]
    logp: list[float]


@dataclass(frozen=True)
class Companion:
    """A second model with the first one's vocabulary, and how the two choose (rlgkd.ops.behaviour)."""

    lm: LanguageModel
    mix: Callable[[Tensor, Tensor], Tensor]
    """(companion's logits, the policy's logits) -> log-probabilities, all [B, V]."""


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    uniforms_BT: np.ndarray | None,
    group: int = 1,
    max_new_tokens: int | Sequence[int],
    on_step: OnStep | None = None,
    companion: Companion | None = None,
    filters: Filters | None = None,
    stops: Callable[[Sequence[int]], bool] | None = None,
) -> list[Completion]:
    """Complete each prompt `group` times; row p * group + g is sample g of prompt p.

    Args:
        lm: The policy; its temperature applies.
        prompts: Token ids, at least one each.
        uniforms_BT: [len(prompts) * group, max_new_tokens or more] in [0, 1); None decodes greedily.
        group: Samples for each prompt.
        max_new_tokens: Where a completion stops that does not end by itself, the same for all or one for each row.
        on_step: Called after each step; if it returns False the completions are returned as they stand.
        companion: Chooses with the policy; what is recorded are the log-probabilities of the two together.
        filters: What is sampled from is what they leave of the distribution, and the log-probabilities are of that.
        stops: Whether the ids of a completion end it, beside the end token; asked after each of its tokens.
    """
    models = [lm] if companion is None else [lm, companion.lm]
    rows = len(prompts) * group
    limit_B = np.broadcast_to(np.asarray(max_new_tokens), (rows,))
    at_once = min(rows, lm.rows_at_once or rows)
    size = max(len(prompts[row // group]) + int(limit_B[row]) for row in range(rows))
    writers = [writer(model, at_once, size) for model in models]
    ids: list[list[int]] = [[] for _ in range(rows)]
    logp: list[list[float]] = [[] for _ in range(rows)]
    active: list[int] = []
    begun, end = 0, lm.end  # asking the tokenizer takes longer than a small product
    while True:
        room = at_once - len(active)
        # Several at a time: a prompt read alone costs about what eight cost together.
        if begun < rows and (not active or (8 * room >= at_once and all(each.admits for each in writers))):
            new = list(range(begun, min(rows, begun + room)))
            first = new[0] // group
            for each in writers:
                each.admit(prompts[first : new[-1] // group + 1], [row // group - first for row in new])
            active, begun = active + new, new[-1] + 1
        logits_BV = writers[0].logits()
        if companion is not None:
            logits_BV = companion.mix(writers[1].logits(), logits_BV)
        if filters:
            logits_BV = filters(logits_BV)
        if uniforms_BT is None:
            token_B = logits_BV.argmax(-1)
            logp_B = logits_BV.log_softmax(-1).gather(-1, token_B[:, None])[:, 0]
        else:
            uniform_B = uniforms_BT[active, [len(ids[row]) for row in active]]
            token_B, logp_B = sample(logits_BV, torch.from_numpy(uniform_B).to(lm.device))
        for row, token, value in zip(active, token_B.tolist(), logp_B.tolist(), strict=True):
            ids[row].append(token)
            logp[row].append(value)
        if on_step is not None and not on_step(len(active)):
            break
        going = [n for n, row in enumerate(active) if ids[row][-1] != end and len(ids[row]) < limit_B[row]]
        if stops is not None:
            going = [n for n in going if not stops(ids[active[n]])]
        if len(going) < len(active):
            active, token_B = (
                [active[n] for n in going],
                token_B[torch.tensor(going, dtype=torch.long, device=lm.device)],
            )
            for each in writers:
                each.keep(going, complete=begun == rows)
        if active:
            for each in writers:
                each.write(token_B)
        elif begun == rows:
            break
    return [Completion(i, p) for i, p in zip(ids, logp, strict=True)]
