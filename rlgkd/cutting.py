"""Which layers a student can do without: the divergence to the whole model with each block of layers left out.

The layers of a trained transformer refine one stream of states, and some blocks change it little (Men et al. 2024,
ShortGPT, arXiv 2403.03853; Gromov et al. 2024, arXiv 2403.17887). Those papers rank layers by the states; here the
measure is the one that distillation then lowers, at the prefixes on which the student will work.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rlgkd.errors import SettingError
from rlgkd.lm.copies import frozen_view
from rlgkd.lm.fused_loss import TeacherAt, fused_sum
from rlgkd.lm.layers import keep_layers, layer_count
from rlgkd.lm.model import LanguageModel
from rlgkd.ops import divergence
from rlgkd.rollout import sample_episodes
from rlgkd.types import Batch, Task

PROMPTS = 12


@dataclass(frozen=True)
class CutModel:
    """A model without one block of its layers, and how far it is from the whole one, in nats per token."""

    left_out: range
    kept: tuple[int, ...]
    forward_kl: float
    """KL(whole || cut)."""
    reverse_kl: float
    """KL(cut || whole)."""


@torch.no_grad()
def cuts(
    whole: LanguageModel, task: Task, keep: int, *, prompts: int = PROMPTS, split: str = "train", seed: int = 0
) -> Iterator[CutModel]:
    """Measure the model without each block of adjacent layers that leaves `keep`, from the first block to the last.

    The prefixes are those of texts that the whole model writes to the split's first prompts, each sampled once; the
    divergences are means over their tokens. No weights are copied.

    Raises: SettingError unless 1 <= keep < the number of layers; ModelError for a model without a list of layers.
    """
    layers = layer_count(whole.module)
    if not 1 <= keep < layers:
        raise SettingError("layers", keep, f"the model has {layers}: keep from 1 to {layers - 1} of them")
    items = [task.item(split, seed, index) for index in range(min(prompts, task.size(split)))]
    episodes = sample_episodes(whole, task, items, seed=seed)
    batch = Batch.collate(episodes, pad=whole.pad, device=whole.device)
    states_NH = whole.states(batch)
    for start in range(keep + 1):
        left_out = range(start, start + layers - keep)
        kept = tuple(index for index in range(layers) if index not in left_out)
        cut = copy.copy(whole)  # its head is the whole model's: only the layers differ
        cut.module = keep_layers(frozen_view(whole.module), kept)
        _, found = fused_sum(cut, cut.states(batch), _record, (whole, states_NH))
        means = {name: float(values_N.double().mean()) for name, values_N in found.items()}
        yield CutModel(left_out, kept, **means)


def best_cut(whole: LanguageModel, task: Task, keep: int) -> CutModel:
    """The cut with the smallest sum of both divergences, which is Jeffreys' divergence; the first of equal ones.

    Raises: as `cuts` does.
    """
    return min(cuts(whole, task, keep), key=jeffreys)


def jeffreys(cut: CutModel) -> float:
    """Both divergences together, by which cuts are chosen."""
    return cut.forward_kl + cut.reverse_kl


def _record(logits_NV: torch.Tensor, whole_NV: TeacherAt, _: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    assert isinstance(whole_NV, torch.Tensor)
    found = {
        "forward_kl": divergence.forward_kl(whole_NV, logits_NV),
        "reverse_kl": divergence.reverse_kl(whole_NV, logits_NV),
    }
    return logits_NV.new_zeros(()), found
