"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), with a teacher in the objective.

A linear value head on the student's last hidden states; generalised advantage estimates (arXiv 1506.02438) of the task
reward, which is assigned to the last token if it has no per-action parts. Eq. 5's divergence stays a loss of its own,
exact over the vocabulary, unless combination="in_reward" makes it a cost of each token, as RLHF has it. REINFORCE with
a learned baseline is policy_loss="reinforce", gae_lambda=1, epochs=1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self, Unpack

import torch
from annotated_types import Ge
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlgkd.agents._signature import PPOSettings
from rlgkd.agents.advantages import Credit
from rlgkd.agents.agent_settings import ADVANTAGE, RewardSettings
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.micro_batch import MicroBatch
from rlgkd.agents.persistence import agent_folder
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import sum_on_host
from rlgkd.errors import CheckpointError, one_line
from rlgkd.objective import POLICY_LOSS, Fraction, Objective
from rlgkd.ops.policy_loss import value_loss
from rlgkd.ops.returns import gae
from rlgkd.permissions import follow_umask

VALUE_FILE = "value.safetensors"


class PPOConfig(AlgorithmConfig):
    """What makes PPO of Reinforce: clipped ratios, a mean over tokens, advantages from a value head."""

    owner = "PPO"
    fixed = frozenset({"advantage", "drop_even_groups", "resample_rounds", "distil_even_groups", "replay_terms"})

    reward: RewardSettings = RewardSettings(advantage=ADVANTAGE("raw"))
    objective: Objective = Objective(policy_loss=POLICY_LOSS("clipped"), reduction="token_mean")
    gae_lambda: Fraction = 0.95
    """The lambda of PPO's advantages: 0 trusts the values alone, 1 the rewards alone."""
    value_coefficient: Annotated[float, Ge(0)] = 0.1
    """Weight of the squared error of PPO's value head, whose gradient reaches the student too."""
    value_clip: Annotated[float, Ge(0)] | None = 0.2
    """How far a value of PPO may move from the one it had in sampling; null lets it go."""
    normalise_advantages: bool = True
    """Bring the advantages of PPO's batch to mean 0 and deviation 1."""


class PPO(TextAlgorithm):
    """A clipped ratio to the policy that sampled, for several epochs if asked, and advantages from a value head."""

    Config = PPOConfig
    config: PPOConfig

    def __init__(
        self, policy: str | Path | PreTrainedModel, env: GymEnv | str, **settings: Unpack[PPOSettings]
    ) -> None:
        """Build as `Reinforce` does, and a value head that begins at 0."""
        super().__init__(policy, env, **settings)  # type: ignore[misc]  # PPO's own settings are its Config's

    def _build(self, *models: Any) -> None:
        super()._build(*models)
        self.value_head = nn.Linear(self.student.head.in_features, 1, device=self.student.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.trained_parts["value"] = self.value_head
        self.policy.optimizer.add_param_group({"params": [*self.value_head.parameters()], "weight_decay": 0.0})

    def credit(self, rollout: Rollout) -> Credit:
        """Generalised advantage estimates of each action, and the loss of the value head."""
        value_BL = self._values(rollout)
        lengths_B = torch.tensor([t.length for t in rollout.trajectories], device="cpu")
        mask_BL = torch.arange(value_BL.shape[1], device="cpu") < lengths_B[:, None]
        on_policy = len(rollout.on_policy)
        rewards = self._rewards(rollout)
        costs_BL = self._divergence_costs(rollout)
        reward_BL = torch.zeros_like(value_BL) if costs_BL is None else -costs_BL
        reward_BL[:on_policy, : rewards.values_BL.shape[1]] += rewards.values_BL
        advantage_BL = gae(reward_BL, value_BL, self.config.gae_lambda, mask_BL)
        value_head_loss = ValueHeadLoss(self, value_BL, advantage_BL + value_BL)
        valid_B = torch.ones(len(lengths_B), dtype=torch.bool, device="cpu")
        valid_B[:on_policy] = rewards.valid_B
        counted_BL = mask_BL & valid_B[:, None]
        counted_BL[on_policy:] = False
        if self.config.normalise_advantages and counted_BL.sum() > 1:
            counted_N = advantage_BL[counted_BL]
            advantage_BL = (advantage_BL - counted_N.mean()) / (counted_N.std() + 1e-8)
        return Credit(advantage_BL.masked_fill(~counted_BL, 0.0), valid_B, value_head_loss)

    def _values(self, rollout: Rollout) -> Tensor:
        """[B, L], the head's value of each state before an action; 0 past a row's end."""
        with self.autocast():
            return rollout.action_values(
                self.student, self.config.optimizer.token_budget, lambda states_NH, _: self.value(states_NH)
            )

    def value(self, states_NH: Tensor) -> Tensor:
        """[N], the head's values of states."""
        with torch.autocast(self.device.type, enabled=False):  # differences of values are small
            values_N: Tensor = self.value_head(states_NH.float())[:, 0]
        return values_N

    def _write_parts(self, folder: Path) -> None:
        """Write the value head."""
        file = folder / VALUE_FILE
        save_file(self.value_head.state_dict(), file)
        follow_umask([file])

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: GymEnv | str | None = None, **settings: Any
    ) -> Self:
        """Load as `Reinforce` does, and the value head."""
        agent = super().load(path, env, **settings)
        file = agent_folder(path) / VALUE_FILE
        try:
            weights = load_file(file)
            if not all(bool(part.isfinite().all()) for part in weights.values()):
                raise ValueError("its weights are not finite")
            agent.value_head.load_state_dict(weights)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                "path", str(file), f"give a folder that save() wrote: {one_line(error, 300)}"
            ) from error
        return agent


class ValueHeadLoss:
    """The value head's squared error, weighted as the policy term is."""

    def __init__(self, agent: PPO, old_value_BL: Tensor, return_BL: Tensor) -> None:
        self.agent, self.old_value_BL, self.return_BL = agent, old_value_BL, return_BL
        self._losses: list[Tensor] = []

    def __call__(self, states_NH: Tensor, policy_weight_N: Tensor, part: MicroBatch) -> Tensor:
        """The loss of a micro-batch."""
        old_N, return_N = part.per_action(self.old_value_BL).float(), part.per_action(self.return_BL).float()
        config = self.agent.config
        errors_N = value_loss(self.agent.value(states_NH), old_N, return_N, clip=config.value_clip)
        self._losses.append((policy_weight_N * errors_N.detach()).sum())
        loss: Tensor = config.value_coefficient * (policy_weight_N * errors_N).sum()
        return loss

    def metrics(self) -> dict[str, float]:
        """The loss over all micro-batches since the last call, those of other processes included."""
        losses, self._losses = self._losses, []
        (loss,) = self.agent.ranks.sum_numbers([sum_on_host(losses)])
        return {"train/value_loss": loss}
