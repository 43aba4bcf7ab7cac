"""Sampling of completions, with the log-probabilities and entropies that they were sampled with.

A prompt is prefilled once for all samples of its group, and rows that end leave the batch (rlgkd.lm.decoders). Each
row and step has one uniform number of its own, given by the caller, so a sample does not depend on what else is in the
batch.

With a `CoSampler` two models choose each token together, in lockstep on the same tokens. Filters
(rlgkd.ops.logit_filters) are for evaluation. Stop strings are in rlgkd.lm.stop_strings.

Dimensions: B rows that are being decoded, or all rows of a table; T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgkd.devices import to_device, widest_float
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.decoders import make_decoder
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.policy_loss import log_probability_and_entropy
from rlgkd.ops.sampling import check_sampled, sample_unchecked

OnStep = Callable[[int], bool]
"""Called after each step with the number of tokens that it generated; False stops the decoding."""


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, an end token included if it was reached, and the distributions that they are from, in nats."""

    ids: list[int]
    logp: list[float]
    """Log-probability of each token."""
    entropy: list[float]
    """Entropy of the distribution that each token was sampled from."""


@dataclass(frozen=True)
class CoSampler:
    """A second model with the same vocabulary, and how the two choose a token (rlgkd.ops.behaviour_policy)."""

    lm: LanguageModel
    mix: Callable[[Tensor, Tensor], Tensor]
    """(the co-sampler's logits, the policy's logits) -> log-probabilities, all [B, V]."""
    prompts: Sequence[Sequence[int]] | None = None
    """The prompts as the second model reads them; None: as the policy does."""


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
    end_ids: frozenset[int] | None = None,
) -> list[Completion]:
    """Complete each prompt `group` times; row p * group + g is sample g of prompt p.

    Args:
        lm: The policy, sampled at its temperature, at most `lm.rows_at_once` rows at a time.
        prompts: Token ids, at least one each.
        uniforms_BT: [len(prompts) * group, max_new_tokens or more] in [0, 1); None decodes greedily.
        group: Samples of each prompt.
        max_new_tokens: The length at which a completion is cut, the same for all or one for each row.
        on_step: See `OnStep`; the completions are returned as they are when it stops the decoding.
        co_sampler: Chooses together with the policy; the recorded values are of their joint distribution.
        filters: Applied to the distribution; the recorded values are of what they leave.
        should_stop: Whether a completion's ids end it, as an end token does; called after each of its tokens.
        end_ids: The tokens that end a completion; None takes the policy's.
    """
    models = [(lm, prompts)]
    if co_sampler is not None:
        models.append((co_sampler.lm, prompts if co_sampler.prompts is None else co_sampler.prompts))
    rows = len(prompts) * group
    limit_B = np.broadcast_to(np.asarray(max_new_tokens), (rows,))
    capacity = min(rows, lm.rows_at_once or rows)
    decoders = []
    for model, read in models:
        size = max(len(read[row // group]) + int(limit_B[row]) for row in range(rows))
        decoders.append(make_decoder(model, capacity, size))
    # Bookkeeping by arrays, in few calls: for a small model, Python code for each row and token would take longer than
    # the model does.
    ids_BT = np.zeros((rows, int(limit_B.max())), dtype=np.int64)
    length_B = np.zeros(rows, dtype=np.int64)
    active = np.zeros(0, dtype=np.int64)  # the rows that are being decoded, in the decoders' order
    cells: list[tuple[np.ndarray, np.ndarray]] = []  # (row, column) of each step's tokens in the tables
    recorded: list[tuple[Tensor, Tensor]] = []  # stays on the device until the end, to wait for it only once
    # Row and column of the next tokens, on the device: copied when rows come or go, counted on in between.
    next_cell: tuple[Tensor, Tensor] | None = None
    uniforms = (
        None if uniforms_BT is None else to_device(torch.from_numpy(uniforms_BT).to(widest_float(lm.device)), lm.device)
    )
    started = 0
    ends = lm.end_ids if end_ids is None else end_ids
    while True:
        # 1. Start rows in free slots, but not before a quarter of them is free: to prefill one prompt alone costs about
        # as much as to prefill eight together.
        free = capacity - len(active)
        if started < rows and (
            not len(active) or (4 * free >= capacity and all(decoder.can_add_rows for decoder in decoders))
        ):
            new = np.arange(started, min(rows, started + free))
            first = started // group
            for decoder, (_, read) in zip(decoders, models, strict=True):
                decoder.add_rows(read[first : new[-1] // group + 1], new // group - first)
            active = np.concatenate([active, new])
            started += len(new)
            next_cell = None
        # 2. Form the distribution of each row's next token.
        logits_BV = decoders[0].logits()
        if co_sampler is not None:
            logits_BV = co_sampler.mix(decoders[1].logits().to(lm.device), logits_BV)
        if filters:
            logits_BV = filters(logits_BV)
        # 3. Choose the tokens.
        cell = (active, length_B[active])
        if uniforms is None:
            token_B = logits_BV.argmax(-1)
            logp_B, entropy_B = log_probability_and_entropy(logits_BV, token_B)
        else:
            if next_cell is None:
                next_cell = to_device(active, lm.device), to_device(cell[1], lm.device)
            uniform_B = uniforms[next_cell]
            token_B, logp_B, entropy_B = sample_unchecked(logits_BV, uniform_B)
            next_cell = next_cell[0], next_cell[1] + 1
        # 4. Bring the ids to the host. This waits for the device in every step, and has to: which rows end, and so what
        # the next step computes, depends on them.
        ids_B = token_B.cpu().numpy()
        if uniforms is not None and ids_B.min() < 0:
            _refuse_lost(lm, token_B, uniform_B)
        ids_BT[cell] = ids_B
        new_length_B = cell[1] + 1
        length_B[active] = new_length_B
        cells.append(cell)
        recorded.append((logp_B, entropy_B))
        if on_step is not None and not on_step(len(active)):
            break
        # 5. Drop the rows that have ended.
        going = new_length_B < limit_B[active]
        for end in ends:
            going &= ids_B != end
        if should_stop is not None:
            for index in np.flatnonzero(going):
                going[index] = not should_stop(_row_values(ids_BT, length_B, active[index]))
        if not going.all():
            kept = np.flatnonzero(going)
            active = active[kept]
            next_cell = None
            token_B = token_B[to_device(kept, lm.device)]
            for decoder in decoders:
                decoder.keep_rows(kept, final=started == rows)
        # 6. Run the models over the chosen tokens of the others.
        if len(active):
            for (model, _), decoder in zip(models, decoders, strict=True):
                decoder.step(token_B.to(model.device))
        elif started == rows:
            break
    all_cells = tuple(np.concatenate(arrays) for arrays in zip(*cells, strict=True))
    tables: list[np.ndarray] = [ids_BT]
    for values in zip(*recorded, strict=True):
        table_BT = np.zeros(ids_BT.shape)
        table_BT[all_cells] = torch.cat(values).cpu().numpy()
        if np.isnan(table_BT).any():  # of greedy decoding, which finds a largest number among NaN
            raise _lost(lm)
        tables.append(table_BT)
    return [Completion(*(_row_values(table_BT, length_B, row) for table_BT in tables)) for row in range(rows)]


def _refuse_lost(lm: LanguageModel, token_B: Tensor, uniform_B: Tensor) -> None:
    """Raise for rows in which nothing could be sampled."""
    try:
        check_sampled(token_B, uniform_B)
    except SettingError as error:
        raise (_lost(lm) if error.field == "logits_BV" else error) from error


def _lost(lm: LanguageModel) -> ModelError:
    remedy = (
        "its logits are not finite: take an earlier checkpoint, and lower learning_rate; of a sound model, raise "
        "temperature"
    )
    return ModelError("model", lm.module.config.name_or_path or lm.module.config.model_type, remedy)


def _row_values(table_BT: np.ndarray, length_B: np.ndarray, row: int) -> list[Any]:
    """A row's values up to its length."""
    values: list[Any] = table_BT[row, : length_B[row]].tolist()
    return values
