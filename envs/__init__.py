"""Gymnasium environments in which the state is a text so far and an action is one token; rewards and prompt data."""

if __name__ != "rlgkd.envs":  # someone wrote `import envs` with a checkout's root on sys.path
    raise ImportError(f"this is the package rlgkd.envs: write `import rlgkd.envs`, not `import {__name__}`")

from typing import TYPE_CHECKING, Any

from rlgkd.envs import rewards
from rlgkd.envs.data.sources import ListItems
from rlgkd.envs.task import TextTask
from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.envs.vector_env import TextVectorEnv
from rlgkd.envs.wrappers.teacher_reward import TeacherReward, TeacherRewardVector

if TYPE_CHECKING:
    from rlgkd.envs.sb3 import TextVecEnv, make_sb3_vec_env
    from rlgkd.envs.wrappers.teacher_reward_sb3 import TeacherRewardVecEnv

__all__ = [
    "ListItems",
    "TeacherReward",
    "TeacherRewardVecEnv",
    "TeacherRewardVector",
    "TextGenerationEnv",
    "TextTask",
    "TextVecEnv",
    "TextVectorEnv",
    "make_sb3_vec_env",
    "rewards",
]


def __getattr__(name: str) -> Any:
    """Import Stable-Baselines3 when a name that needs it is first used."""
    if name in ("TextVecEnv", "make_sb3_vec_env"):
        from rlgkd.envs import sb3

        return getattr(sb3, name)
    if name == "TeacherRewardVecEnv":
        from rlgkd.envs.wrappers.teacher_reward_sb3 import TeacherRewardVecEnv

        return TeacherRewardVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
