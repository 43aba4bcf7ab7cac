"""Which environments an agent takes: those of rlgkd.envs, bare or in wrappers that change nothing the agent reads."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from rlgkd.errors import SettingError, one_line

SEEN_THROUGH = ("Monitor", "OrderEnforcing", "PassiveEnvChecker", "VecMonitor")
"""Wrappers that change nothing the agent reads; others would be passed by unseen, so they are refused."""

TEACHER_REWARDS = ("TeacherReward", "TeacherRewardVector", "TeacherRewardVecEnv")
"""For other libraries: the agents here have the teacher in their objective."""


def as_sb3(env: Any) -> Any:
    """A registered id as its environment, a vector environment of Gymnasium's as SB3's; others as they are."""
    if isinstance(env, str):  # SB3 would ask for a render mode that text does not have
        try:
            return gym.make(env)
        except gym.error.Error as error:
            raise SettingError(
                "env", env, f"it could not be made ({one_line(error, 200)}); see rlgkd list envs"
            ) from error
    if not isinstance(env, gym.Env | VecEnv | gym.vector.VectorEnv):
        raise SettingError("env", type(env).__name__, "give an environment of rlgkd.envs, or a registered id")
    if not isinstance(env, gym.vector.VectorEnv):
        return env
    if type(env).__name__ in TEACHER_REWARDS:
        raise _teacher_reward(env)
    if isinstance(env.unwrapped, gym.vector.AsyncVectorEnv):
        raise _in_other_processes("AsyncVectorEnv")
    if env.unwrapped is not env or not hasattr(env, "as_sb3"):
        raise SettingError("env", str(env), "give the vector environment itself, without wrappers")
    return env.as_sb3()


def check_wrappers(env: VecEnv) -> None:
    """Refuse wrappers: the agent samples whole texts by the task itself, so what a wrapper changes would be ignored.

    Environments in other processes are refused too: their task is there, and need not be something that can be sent.
    """
    if isinstance(env.unwrapped, SubprocVecEnv):
        raise _in_other_processes("SubprocVecEnv")
    for layer in _layers(env):
        name = type(layer).__name__
        if name in TEACHER_REWARDS:
            raise _teacher_reward(layer)
        if name not in SEEN_THROUGH:
            raise SettingError("env", name, "this agent would not see the wrapper; put what it does into the reward")


def teacher_weight(env: VecEnv) -> float | None:
    """The alpha of the environment's TeacherReward; None where there is none, or it is in another process."""
    found = [layer.mixture.alpha for layer in _layers(env) if type(layer).__name__ in TEACHER_REWARDS]
    return found[0] if found else None


def _layers(env: VecEnv) -> list[Any]:
    """The wrappers from the outside in, those of a first scalar environment among them."""
    layers: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        layers.append(env)
        env = env.venv
    inner = env.envs[0] if isinstance(env, DummyVecEnv) else None
    while isinstance(inner, gym.Wrapper):
        layers.append(inner)
        inner = inner.env
    return layers


def _in_other_processes(name: str) -> SettingError:
    remedy = "its environments are in other processes, which this agent would never step: give a DummyVecEnv of one"
    return SettingError("env", name, f"{remedy}, or make_sb3_vec_env(...)")


def _teacher_reward(layer: Any) -> SettingError:
    return SettingError(
        "env",
        type(layer).__name__,
        "unwrap it, and give this agent teacher= and alpha=: the teacher is in its objective",
    )
