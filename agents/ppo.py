"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), with a teacher in the objective.

A linear value head on the student's last hidden states; generalised advantage estimates (arXiv 1506.02438) of the task
reward, which comes at the last token where it does not tell what each earned. Eq. 5's divergence stays a loss of its
own, exact over the vocabulary, unless combination="in_reward" makes it a cost of each token, as RLHF has it. REINFORCE
with a learned baseline is policy_loss="reinforce", gae_lambda=1, epochs=1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.persistence import agent_folder
from rlgkd.agents.update import AtActions, Beside, of_each_action
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.ops.policy_loss import value_loss
from rlgkd.ops.returns import gae
from rlgkd.types import ON_POLICY

VALUE = "value.safetensors"


class PPO(TextAlgorithm):
    """A clipped ratio to the policy that sampled, advantages from a value head, several epochs on each rollout."""

    preset: ClassVar[Mapping[str, Any]] = {"advantage": "raw", "drop_even_groups": False}
    defaults: ClassVar[Mapping[str, Any]] = {
        **TextAlgorithm.defaults, "policy_loss": "clipped", "policy_reduction": "token_mean"
    }  # fmt: skip

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: GymEnv | str,
        *,
        gae_lambda: float = 0.95,
        value_coefficient: float = 0.1,
        value_clip: float | None = 0.2,
        normalise_advantages: bool = True,
        **settings: Any,
    ) -> None:
        """Build as `Reinforce` does, and a value head that begins at 0.

        Args:
            policy: The student.
            env: As of `Reinforce`.
            gae_lambda: 0 trusts the values alone, 1 the rewards alone; in [0, 1].
            value_coefficient: Weight of the value head's squared error, whose gradient reaches the student too.
            value_clip: How far a value may move from the one it had in sampling; None lets it go.
            normalise_advantages: Bring the batch's to mean 0 and deviation 1.
            **settings: As of `Reinforce`.

        Raises: SettingError, ModelError.
        """
        if not 0 <= gae_lambda <= 1:
            raise SettingError("gae_lambda", gae_lambda, "give a number in [0, 1]")
        for name, value in (("value_coefficient", value_coefficient), ("value_clip", value_clip)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise SettingError(name, value, "give 0 or more")
        super().__init__(policy, env, **settings)
        self.settings |= {
            "gae_lambda": gae_lambda, "value_coefficient": value_coefficient, "value_clip": value_clip,
            "normalise_advantages": normalise_advantages,
        }  # fmt: skip

    def _setup_model(self) -> None:
        super()._setup_model()
        self.value_head = nn.Linear(self.student.head.in_features, 1, device=self.student.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.parts["value"] = self.value_head
        self.policy.optimizer.add_param_group({"params": [*self.value_head.parameters()], "weight_decay": 0.0})

    def advantages(self) -> Tensor:
        """[B, L], of each action; see `TextAlgorithm.advantages`."""
        value_BL = self._values()
        lengths_B = torch.tensor([t.length for t in self.trajectories], device="cpu")
        mask_BL = torch.arange(value_BL.shape[1], device="cpu") < lengths_B[:, None]
        own = sum(t.source in ON_POLICY for t in self.trajectories)
        reward_BL = -self.costs_BL()
        earned_BL = self.rewards_BL()
        reward_BL[:own, : earned_BL.shape[1]] += earned_BL
        advantage_BL = gae(reward_BL, value_BL, self.settings["gae_lambda"], mask_BL)
        self._value_BL, self._return_BL = value_BL, (advantage_BL + value_BL).nan_to_num(nan=0.0)
        counted_BL = mask_BL & advantage_BL.isfinite()
        counted_BL[own:] = False
        if self.settings["normalise_advantages"] and counted_BL.sum() > 1:
            some_N = advantage_BL[counted_BL]
            advantage_BL = (advantage_BL - some_N.mean()) / (some_N.std() + 1e-8)
        return advantage_BL.masked_fill(~counted_BL & ~advantage_BL.isnan(), 0.0)

    def _values(self) -> Tensor:
        """[B, L], what the head says of each state before an action; 0 behind a row's end."""
        with self.autocast():
            return of_each_action(
                self.student, self.trajectories, self.token_budget, lambda states_NH, _: self._value(states_NH)
            )

    def _value(self, states_NH: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):  # differences of values are small
            values_N: Tensor = self.value_head(states_NH.float())[:, 0]
        return values_N

    def _step(self, advantages_BL: Tensor, beside: Beside | None = None) -> dict[str, float]:
        def critic(states_NH: Tensor, policy_N: Tensor, at_actions: AtActions) -> Tensor:
            old_N, return_N = at_actions(self._value_BL).float(), at_actions(self._return_BL).float()
            errors_N = value_loss(self._value(states_NH), old_N, return_N, clip=self.settings["value_clip"])
            losses.append((policy_N * errors_N.detach()).sum().item())
            loss: Tensor = self.settings["value_coefficient"] * (policy_N * errors_N).sum()
            return loss

        losses: list[float] = []
        means = super()._step(advantages_BL, critic)
        self.logger.record("train/value_loss", sum(losses))
        return means

    def save(self, path: str | Path, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """As of `Reinforce`, and the value head."""
        super().save(path, exclude, include)
        save_file(self.value_head.state_dict(), agent_folder(path) / VALUE)

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: GymEnv | str | None = None, **settings: Any
    ) -> Self:
        """As of `Reinforce`, and the value head."""
        agent = super().load(path, env, **settings)
        file = agent_folder(path) / VALUE
        try:
            agent.value_head.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError("path", str(file), f"give a folder that save() wrote: {error}") from error
        return agent
