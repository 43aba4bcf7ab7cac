"""Several models as one teacher of the same texts: their states side by side, and one distribution of their heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlgkd.lm.model import LanguageModel
from rlgkd.ops.teacher_mixture import Mix, mixed
from rlgkd.types import Batch, PromptFormat


class ModelMixture:
    """A weighted product or sum of models' distributions (rlgkd.ops.teacher_mixture). It writes no texts."""

    def __init__(self, members: Sequence[LanguageModel], weights: Sequence[float], mix: Mix) -> None:
        """Take the members, which read a text in the same way, each with its weight."""
        self.members, self.weights, self.mix = list(members), list(weights), mix

    @property
    def format(self) -> PromptFormat | None:
        """How all of them read prompts."""
        return self.members[0].format

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that all of them take."""
        return min(lm.context for lm in self.members)

    @property
    def vocabulary(self) -> int:
        """The number of tokens of which they give probabilities."""
        return self.members[0].vocabulary

    @property
    def device(self) -> torch.device:
        """Where the states come from."""
        return self.members[0].device

    @property
    def pad(self) -> int:
        """The id that fills padding."""
        return self.members[0].pad

    @property
    def shares_prompts(self) -> bool:
        """Whether some member runs samples of one prompt together."""
        return any(lm.shares_prompts for lm in self.members)

    @property
    def module(self) -> nn.Module:
        """All their weights."""
        return nn.ModuleList([lm.module for lm in self.members])

    def states(self, batch: Batch) -> Tensor:
        """[N, sum of H]: the members' states at the actions, side by side."""
        return torch.cat([lm.states(batch).to(self.device) for lm in self.members], dim=-1)

    def actions(self, batch: Batch) -> Tensor:
        """[N]: the tokens that were chosen, in the order of `states`."""
        return batch.tokens_BT[batch.action_index_N]

    def split(self, states_NH: Tensor) -> list[Tensor]:
        """The states of each member."""
        return list(states_NH.split([lm.head.in_features for lm in self.members], dim=-1))

    def logp(self, logits: Sequence[Tensor]) -> Tensor:
        """[..., V] of each member, tempered -> the mixture's log-probabilities [..., V]."""
        return mixed(logits, self.weights, self.mix)


Scorer = LanguageModel | ModelMixture
"""What gives states at the actions of texts, and distributions from them."""
