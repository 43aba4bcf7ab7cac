"""A rollout split into micro-batches, the longest rows first, so that little of each is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlgkd.lm.model import LanguageModel
from rlgkd.lm.shared_prefix import order_by_prefix
from rlgkd.types import Batch, Episode


@dataclass
class MicroBatch:
    """Some rows of a rollout as one batch on the model's device."""

    rows: list[int]
    """Their numbers in the rollout."""
    batch: Batch
    teacher_states_NH: Tensor | None = None
    """The teacher's states at the actions, if they were computed early: one layer's [N, H] in all."""

    @cached_property
    def mask_BT(self) -> Tensor:
        """The actions' places in the batch, shifted by one: the state before an action predicts it."""
        return self.batch.action_mask_BT[:, 1:]

    @cached_property
    def _row_and_number_N(self) -> tuple[Tensor, Tensor]:
        """Each action's row in the batch, and its number among the row's actions."""
        number_BT = self.batch.action_mask_BT.cumsum(1)[:, 1:]
        return self.mask_BT.nonzero()[:, 0], number_BT[self.mask_BT] - 1

    def per_action(self, values_BL: Tensor) -> Tensor:
        """Gather per-action values [B, L] of the rollout into this micro-batch's [N]."""
        return values_BL[self.rows].to(self.mask_BT.device)[self._row_and_number_N]

    def per_row(self, values_B: Tensor) -> Tensor:
        """Repeat per-row values [B] of the rollout for each of this micro-batch's N actions."""
        return values_B[self.rows].to(self.mask_BT.device)[self._row_and_number_N[0]]

    def scatter(self, values_N: Tensor) -> Tensor:
        """Put the actions' values [N] at their places in [B, T], with 0 elsewhere."""
        values_BT = values_N.new_zeros(self.mask_BT.shape)
        values_BT[self.mask_BT] = values_N
        return values_BT

    def states_of(self, teacher: LanguageModel) -> Tensor:
        """[N, H], the teacher's states at the actions, by a forward pass if they were not computed early."""
        if self.teacher_states_NH is not None:
            return self.teacher_states_NH
        with torch.no_grad():
            return teacher.states(self.batch)


def micro_batches(
    lm: LanguageModel, episodes: Sequence[Episode], token_budget: int, rows: Sequence[int] | None = None
) -> Iterator[MicroBatch]:
    """Split into groups whose padded size stays within the budget (or one row), longest first.

    Samples of one prompt stay together, for the model may run over their prompt once. `rows` are those to be split, all
    by default.
    """
    rows = range(len(episodes)) if rows is None else rows
    lengths = [len(episodes[row].tokens_T) for row in rows]
    keys = [episodes[row].item.key if lm.shares_prompts else "" for row in rows]
    for group in _groups(order_by_prefix(lengths, keys), lengths, token_budget):
        some = [rows[index] for index in group]
        yield MicroBatch(some, Batch.collate([episodes[row] for row in some], pad=lm.pad, device=lm.device))


@torch.no_grad()
def prefetch_teacher_states(
    teacher: LanguageModel, batches: Sequence[MicroBatch], *, should_continue: Callable[[], bool] = lambda: True
) -> None:
    """Compute the teacher's states of the micro-batches that lack them, as long as `should_continue` says so."""
    for batch in batches:
        if batch.teacher_states_NH is None and should_continue():
            batch.teacher_states_NH = teacher.states(batch.batch)


@torch.no_grad()
def action_values(
    lm: LanguageModel,
    episodes: Sequence[Episode],
    token_budget: int,
    function: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Compute `function` of (states [N, H], chosen tokens [N]) -> [N] for every action of `rows`, all by default.

    Returns [B, L] in float64 on the CPU, 0 past a row's end and in other rows.
    """
    lengths_B = torch.tensor([episode.length for episode in episodes], device="cpu")
    mask_BL = torch.arange(int(lengths_B.max()), device="cpu") < lengths_B[:, None]
    values_BL = torch.zeros(mask_BL.shape, dtype=torch.float64, device="cpu")
    for part in micro_batches(lm, episodes, token_budget, rows):
        values_RL = values_BL[part.rows]
        values_RL[mask_BL[part.rows]] = function(lm.states(part.batch), lm.actions(part.batch)).double().cpu()
        values_BL[part.rows] = values_RL
    return values_BL


def _groups(order: Sequence[int], lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    group: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if group and (len(group) + 1) * longest > token_budget:
            yield group
            group, longest = [], lengths[row]
        group.append(row)
    if group:
        yield group
