"""Stable-Baselines3 agents that optimise a reward and a divergence to a teacher in one objective."""

if __name__ != "rlgkd.agents":  # someone wrote `import agents` with a checkout's root on sys.path
    raise ImportError(f"this is the package rlgkd.agents: write `import rlgkd.agents`, not `import {__name__}`")

from rlgkd.agents.distill import Distill
from rlgkd.agents.grpo import GRPO
from rlgkd.agents.ppo import PPO
from rlgkd.agents.reinforce import RLOO, Reinforce
from rlgkd.agents.sb3.actor_critic import LanguageModelActorCritic
from rlgkd.agents.sb3.entropy_reward import EntropyReward

__all__ = ["GRPO", "PPO", "RLOO", "Distill", "EntropyReward", "LanguageModelActorCritic", "Reinforce"]
