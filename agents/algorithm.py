"""What the agents share: a Stable-Baselines3 algorithm whose policy is a language model.

An update is GKD's Algorithm 1 with a reward: sample texts (`collect_rollouts`), turn their scores into advantages
(`credit`), and descend the loss of Eq. 5 (`train`, `gradient_step`).

SB3's OnPolicyAlgorithm gives the interface (learn, callbacks, loggers, predict). Replaced are: its buffer of single
steps, for a sequence is one sample here; its training loop's order of logging, so that the row of an update holds that
update's losses; and its pickled files, for Hugging Face folders. A timestep is a generated token, and callbacks are
called once for each lockstep of the batch, as SB3 calls them once for each step of its vector environment.

Nothing random is global: see `TrainingState`.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from accelerate import Accelerator
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.agents._signature import AlgorithmSettings
from rlgkd.agents.adaptation import AlphaSteering, FollowingTeacher
from rlgkd.agents.advantages import Credit, Rewards, credit_of, no_credit, rewards_of
from rlgkd.agents.async_scoring import Scoring
from rlgkd.agents.build import build_optimizer, open_models, trainable_state
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.metrics import CONSTANT_UPDATES, constant_reward, rollout_metrics, warn_of_constant_reward
from rlgkd.agents.micro_batch import log_probabilities, log_ratios, micro_batches, prefetch_teacher_states
from rlgkd.agents.persistence import TEACHER_FOLDER, agent_folder, read_agent, write_agent
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.sb3.env_wrappers import as_sb3, check_wrappers
from rlgkd.agents.sb3.policy import LanguageModelPolicy
from rlgkd.agents.sb3.progress_bar import TokenProgressBar
from rlgkd.agents.signature import document
from rlgkd.agents.sources import Sources
from rlgkd.agents.state import TrainingState
from rlgkd.agents.update import Means, accumulate_gradient
from rlgkd.errors import SettingError
from rlgkd.lm.loading import save
from rlgkd.objective import Objective
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.returns import overlong_penalty
from rlgkd.ops.sampling import uniforms
from rlgkd.rollout import check_reference, sample_episodes
from rlgkd.settings import layered, span
from rlgkd.types import Episode, Item, Task, Trajectory


class TextAlgorithm(OnPolicyAlgorithm):
    """Base of the agents: collects trajectories, descends Eq. 5, saves and loads."""

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig

    def __init_subclass__(cls, **given: Any) -> None:
        """Give the class the signature and the `Args:` that follow from its settings."""
        super().__init_subclass__(**given)
        document(cls, TextAlgorithm.__init__, cls.Config)

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: GymEnv | str,
        *,
        teacher: str | Path | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str = "auto",
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        **settings: Unpack[AlgorithmSettings],
    ) -> None:
        """Build student, teacher and optimizer.

        Args:
            policy: The student: a path, a hub name, `embedded:NAME`, `smollm2-135m`, or a loaded model, which is
                trained in place.
            env: A registered id, an environment of `rlgkd.envs` (scalar or vector) or an SB3 VecEnv of them. The agent
                takes its task (prompts, tokenizer, limits, reward) and decodes whole texts itself.
            teacher: As `policy`; may be left out only if alpha is 0.
            tokenizer: The student's, for a loaded model; by default the one of its name, else the environment's.
            device: `auto` or what `accelerate` uses anyway (`cpu` forces the CPU).
            seed: Of everything random.
            verbose: 0 or 1, as in SB3.
            tensorboard_log: Folder for TensorBoard events.
            stats_window_size: Episodes in SB3's `ep_info_buffer`.
            **settings: All settings of `Config`, listed in docs/settings.md.

        Raises: SettingError, ModelError, DependencyError.
        """
        given: dict[str, Any] = dict(settings)
        self.config = self.Config(**given)
        self.config.check_teacher(teacher)
        self.state = TrainingState()
        self.objective = self.config.objective_at(1.0)
        self.rollout = Rollout()
        self.last_metrics: dict[str, Any] = {}
        self._warned = False
        self.accelerator = Accelerator(cpu=str(device) == "cpu")
        if self.accelerator.num_processes > 1:
            raise SettingError("processes", self.accelerator.num_processes, "this version trains in one process")
        if str(device) not in ("auto", self.accelerator.device.type, str(self.accelerator.device)):
            raise SettingError("device", device, f"accelerate runs on {self.accelerator.device}; give auto or cpu")
        self._policy = str(policy) if isinstance(policy, Path) else policy
        self._teacher = str(teacher) if isinstance(teacher, Path) else teacher
        self._tokenizer = tokenizer
        super().__init__(
            policy=LanguageModelPolicy,  # type: ignore[arg-type]  # SB3's actor-critic is not needed here
            env=as_sb3(env),
            learning_rate=self.config.optimizer.learning_rate,
            n_steps=1,
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=self.config.optimizer.max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=self.accelerator.device,
            _init_setup_model=False,
        )
        self._setup_model()

    def _setup_model(self) -> None:
        """Open the models and build sources and optimizer."""
        self._setup_lr_schedule()
        assert self.env is not None
        check_wrappers(self.env)
        config, seed = self.config, self.seed or 0
        self.task: Task = self.env.get_attr("task")[0]
        self.split: str = self.env.get_attr("split")[0]
        if buffer := config.reward.overlong_buffer:
            overlong_penalty(torch.zeros(0, device="cpu"), self.task.max_new_tokens, buffer)  # refuses a longer one
        if span(config.student_fraction)[0] < 1 and config.sampling.off_policy == "references":
            check_reference(self.task.item(self.split, seed, 0))
        self.student, self.teacher = open_models(
            self.task,
            config,
            policy=self._policy,
            teacher=self._teacher,
            tokenizer=self._tokenizer,
            seed=seed,
            device=self.device,
        )
        self.trained_parts: dict[str, torch.nn.Module] = {"student": trainable_state(self.student.module)}
        decay, target = config.teacher.teacher_decay, config.teacher.divergence_target
        self.following_teacher = None
        if decay is not None and self.teacher is not None:
            self.following_teacher = FollowingTeacher(self.student, self.teacher, decay)
            self.trained_parts["teacher"] = self.teacher.module
        self.steering = None if target is None else AlphaSteering(target, config.teacher.alpha_rate)
        self.sources = Sources(self.student, self.teacher, self.task, seed=seed, sampling=config.sampling)
        self.policy: LanguageModelPolicy = LanguageModelPolicy(  # type: ignore[assignment]  # no actor-critic
            self.observation_space, self.action_space, self.student, seed=seed
        )
        self.policy.optimizer = build_optimizer(self.student.module, config, self.lr_schedule, self.device)
        # Only names are kept, for `save`: a model that was given must be free to go.
        self._names = {
            role: model
            for role, model in (("policy", self._policy), ("teacher", self._teacher))
            if isinstance(model, str | None)
        }
        del self._policy, self._teacher, self._tokenizer
        # SB3's learn hands a buffer to collect_rollouts; a sequence is one sample here, so there is none.
        self.rollout_buffer = None  # type: ignore[assignment]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "rlgkd",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until `total_timesteps` tokens have been generated (or read from data); the last batch is finished."""
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        while self.num_timesteps < total_timesteps:
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if not self.collect_rollouts(self.env, callback):
                break
            self._update_current_progress_remaining(min(self.num_timesteps, total_timesteps), total_timesteps)
            self.train()
            self._n_updates += 1
            if not self._warned and self._n_updates >= CONSTANT_UPDATES and self.constant_reward is not None:
                warn_of_constant_reward(self.constant_reward, self.state.rewards.count)
                self._warned = True
            if log_interval and self._n_updates % log_interval == 0:
                self.dump_logs(self._n_updates)
        callback.on_training_end()
        return self

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: None = None, n_rollout_steps: int = 0
    ) -> bool:
        """Sample the texts of an update: from the student with probability `student_fraction` (GKD, Algorithm 1).

        `env` is not stepped: the agent decodes whole texts of the environment's task. Returns whether to go on.
        """
        callback.on_rollout_start()
        self.policy.forget()
        self._began, reward_began = time.perf_counter(), self._seconds_of_reward()
        sampling, fraction = self.config.sampling, self.config.student_fraction(self._current_progress_remaining)
        items, indices = self._next_items()
        on_policy_P = self._coins(len(items)) < fraction
        going = True

        def on_step(tokens: int) -> bool:
            nonlocal going
            self.num_timesteps += tokens
            callback.update_locals({"self": self, "items": items})
            going = callback.on_step()
            return going

        parts = []
        with self.autocast(), Scoring(self.task) as scoring:
            episodes: list[Episode] = []
            if on_policy_P.any():
                chosen = _select(on_policy_P, items, indices)
                episodes += self.sources.on_policy(*chosen, sampling.group_size, on_step)
                scoring.submit(episodes)
            if not on_policy_P.all() and going:
                copies = sampling.group_size if sampling.mixture == "prompt" else 1  # a prompt counts as a prompt
                others = self.sources.off_policy(*_select(~on_policy_P, items, indices), copies)
                scoring.submit(others)
                on_step(sum(episode.length for episode in others))
                episodes = [*episodes, *others]
            if scoring.pending and self.teacher is not None:
                parts = list(micro_batches(self.student, episodes, self.config.optimizer.token_budget))
                prefetch_teacher_states(self.teacher, parts, should_continue=lambda: scoring.pending)
            trajectories = scoring.trajectories()
        self.rollout = Rollout(trajectories=trajectories, micro_batches=parts, student_fraction=fraction)
        self.state.next_prompt += len(items)
        rewards = [t.score.reward for t in self.rollout.on_policy]
        self.state.rewards = self.state.rewards.updated(rewards, [not math.isnan(reward) for reward in rewards])
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend({"r": t.score.reward, "l": t.length, "t": 0.0} for t in trajectories)
        self.logger.record("time/sampling", time.perf_counter() - self._began, exclude="csv")
        self.logger.record("time/reward", self._seconds_of_reward() - reward_began, exclude="csv")
        callback.update_locals(locals())
        callback.on_rollout_end()
        return going

    def train(self) -> None:
        """Descend the loss of Eq. 5 over the rollout: its credit, then `epochs` steps of the optimizer."""
        began = time.perf_counter()
        self.policy.forget()
        self._update_learning_rate(self.policy.optimizer)
        self.objective = self._current_objective()
        with self.autocast():
            self.rollout = self.rollout.split(self.student, self.config.optimizer.token_budget)
            if self._sampling_is_rounded:
                logp_BL = log_probabilities(self.student, self.trajectories, self.config.optimizer.token_budget)
                self.rollout = self.rollout.with_log_probabilities(logp_BL, self.student)
        credit = self.credit(self.rollout)
        if self.config.optimizer.epochs > 1 and self.teacher is not None and self.following_teacher is None:
            with self.autocast():
                prefetch_teacher_states(self.teacher, self.rollout.micro_batches)
        for _ in range(self.config.optimizer.epochs):
            means = self.gradient_step(self.rollout, credit)
        self.rollout.forget_teacher_states()
        self.logger.record("train/alpha", self.objective.alpha)
        if self.steering is not None and self.rollout.on_policy:
            self.steering.step(self.state, alpha=self.objective.alpha, divergence=means.divergence)
        self.logger.record("time/update", time.perf_counter() - began, exclude="csv")

    def credit(self, rollout: Rollout) -> Credit:
        """Turn the rollout's scores into advantages."""
        costs_BL = self._divergence_costs(rollout)
        if not rollout.on_policy or (self.objective.alpha == 1 and costs_BL is None):
            return no_credit(rollout.trajectories)
        rewards = self._rewards(rollout)
        group_size = self.config.sampling.group_size
        return credit_of(rollout, rewards, self.config.reward, group_size=group_size, costs_BL=costs_BL)

    def gradient_step(self, rollout: Rollout, credit: Credit) -> Means:
        """One gradient over the whole rollout, one step of the optimizer."""
        with self.autocast():
            means = accumulate_gradient(
                self.student,
                self.teacher,
                self._loss_objective(),
                rollout,
                credit,
                backward=self.accelerator.backward,
                max_new_tokens=self.task.max_new_tokens,
            )
        optimizer = self.policy.optimizer
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        # A gradient that is not a number is an error here, not a model of NaNs one step later.
        norm = torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        if self.following_teacher is not None:
            self.following_teacher.step()
            rollout.forget_teacher_states()
        self.logger.record("train/loss", means.loss)
        self.logger.record("train/entropy", means.entropy)
        self.logger.record("train/grad_norm", norm.item())
        if self.teacher is not None or self.objective.cross_entropy:
            self.logger.record("train/divergence", means.divergence)
        for name, value in credit.auxiliary.metrics().items() if credit.auxiliary else ():
            self.logger.record(name, value)
        return means

    @property
    def trajectories(self) -> list[Trajectory]:
        """The latest rollout's."""
        return self.rollout.trajectories

    @property
    def constant_reward(self) -> float | None:
        """The reward, if it has been identical for every sample so far; see `rlgkd.agents.metrics`."""
        return constant_reward(self.state.rewards, self.rollout, self.objective)

    @property
    def modules(self) -> torch.nn.Module:
        """All that training changes: what a checkpoint must hold."""
        parts = self.trained_parts
        return parts["student"] if len(parts) == 1 else torch.nn.ModuleDict(parts)

    def autocast(self) -> torch.autocast:
        """The precision of sampling and scoring, the same in both."""
        mixed = self.config.optimizer.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        greedy: bool = True,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ) -> list[str]:
        """Complete prompts in the environment's format, one turn each, and return the texts.

        The filters (rlgkd.ops.logit_filters) need `greedy=False`. Training has none: they change what a policy can
        generate.
        """
        filters = Filters(top_k=top_k, top_p=top_p, min_p=min_p)
        items = [Item(key=f"generate/{n}", prompt=prompt) for n, prompt in enumerate(prompts)]
        episodes = sample_episodes(
            self.student, self.task, items, seed=seed, greedy=greedy, filters=filters, single_turn=True
        )
        return [episode.text for episode in episodes]

    def dump_logs(self, iteration: int = 0) -> None:
        """Write one row: means over the latest batch, so that a row depends on its update alone."""
        self.logger.record("time/iterations", iteration, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        seconds = time.perf_counter() - self._began
        tokens = sum(t.length for t in self.trajectories)
        self.logger.record("time/tokens_per_second", tokens / seconds, exclude="csv")
        for name, value in rollout_metrics(self.trajectories).items():
            self.logger.record(name, value)
        self.last_metrics = dict(self.logger.name_to_value)
        self.logger.dump(step=self.num_timesteps)

    def save(  # type: ignore[override]
        self, path: str | Path, exclude: Any = None, include: Any = None
    ) -> None:
        """Write a Hugging Face folder with the agent's settings beside the model. SB3's `.zip` ending is dropped.

        It holds no optimizer: to go on exactly, use a checkpoint (`rlgkd.checkpoint`; `rlgkd train` writes them).
        """
        folder = agent_folder(path)
        save(self.student.module, self.student.tokenizer, folder)
        shutil.rmtree(folder / TEACHER_FOLDER, ignore_errors=True)
        if self.following_teacher is not None and self.teacher is not None:
            save(self.teacher.module, self.teacher.tokenizer, folder / TEACHER_FOLDER)
        settings = {**self._names, "seed": self.seed, **self.config.flat()}
        write_agent(folder, type(self).__name__, settings, self.state)

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: GymEnv | str | None = None, **settings: Any
    ) -> Self:
        """Open what `save` wrote, on `env`; `settings` override the saved ones.

        A teacher that was a loaded model and schedules that were functions are not saved: give them again.

        Raises: CheckpointError if the folder is not an agent's; SettingError for what must be given.
        """
        folder = agent_folder(path)
        saved, state = read_agent(folder, cls.__name__, given=settings)
        if env is None:
            raise SettingError("env", env, "give the environment to go on in, for its prompts, limits and reward")
        moving = {f"{name}_{part}" for name in ("alpha", "student_fraction") if name in settings for part in _MOVES}
        kept = {name: value for name, value in saved.items() if name not in moving}
        agent = cls(env=env, **layered(cls.Config, {**kept, "policy": str(folder)}, settings))
        agent.state = state
        if "alpha" in settings or agent.steering is None:
            agent.state.alpha = None
        return agent

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the environment's rows and the action space; unlike SB3, no global generator is touched."""
        if seed is not None:
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)

    @property
    def num_timesteps(self) -> int:
        """Tokens so far, under SB3's name."""
        return self.state.timesteps

    @num_timesteps.setter
    def num_timesteps(self, value: int) -> None:
        self.state.timesteps = value

    @property
    def _n_updates(self) -> int:
        """Updates so far, under SB3's name."""
        return self.state.updates

    @_n_updates.setter
    def _n_updates(self, value: int) -> None:
        self.state.updates = value

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """As SB3's, with a progress bar that counts tokens."""
        callback = CallbackList(callback) if isinstance(callback, list) else callback
        callback = callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
        return super()._init_callback(CallbackList([callback, TokenProgressBar()]) if progress_bar else callback)

    def _next_items(self) -> tuple[list[Item], list[int]]:
        """The items of this update, and their indices in the stream of items."""
        first, sampling = self.state.next_prompt, self.config.sampling
        indices = list(range(first, first + sampling.prompts_per_update))
        few = sampling.train_prompts
        seed = self.seed or 0
        return [self.task.item(self.split, seed, index % few if few else index) for index in indices], indices

    def _coins(self, prompts: int) -> np.ndarray:
        """[P] in [0, 1): a prompt is on-policy where this is below `student_fraction`; the same for all of a batch."""
        coins_P = uniforms(self.seed or 0, "student_fraction", self._n_updates, prompts)
        if self.config.sampling.mixture == "batch":
            coins_P[:] = coins_P[0]
        return coins_P

    def _current_objective(self) -> Objective:
        """Eq. 5 at the progress of this update, the one of the learning rate too: that after its texts (as SB3 has it).

        Lambda is the one with which the texts were drawn.
        """
        objective = self.config.objective_at(self._current_progress_remaining, alpha=self.state.alpha)
        return objective.model_copy(update={"student_fraction": self.rollout.student_fraction})

    def _loss_objective(self) -> Objective:
        """The objective used in the loss; with `in_reward` the divergence is in the reward, so alpha is 0 here."""
        if self.config.reward.combination == "in_reward":
            return self.objective.model_copy(update={"alpha": 0.0})
        return self.objective

    @property
    def _sampling_is_rounded(self) -> bool:
        """Whether log-probabilities must be computed again as training forms them.

        In bfloat16 those of sampling differ by its rounding, which a tight clip range would mistake for a policy that
        has moved.
        """
        mixed = self.config.optimizer.precision == "bfloat16"
        return mixed and self.objective.policy_loss.name != "reinforce" and self.config.sampling.behaviour is None

    def _rewards(self, rollout: Rollout) -> Rewards:
        """The rewards of the actions of on-policy trajectories; with `in_reward`, times 1 - alpha."""
        deviation = self.state.rewards.std
        rewards = rewards_of(
            rollout.on_policy, self.config.reward, deviation=deviation, max_new_tokens=self.task.max_new_tokens
        )
        if self.config.reward.combination == "in_loss":
            return rewards
        return dataclasses.replace(rewards, values_BL=(1 - self.objective.alpha) * rewards.values_BL)

    def _divergence_costs(self, rollout: Rollout) -> torch.Tensor | None:
        """[B, L], what `in_reward` charges each action: alpha (log p_S - log p_T), p_S as it sampled; else None."""
        if self.config.reward.combination == "in_loss" or self.teacher is None:
            return None
        with self.autocast():
            ratios_BL = log_ratios(self.teacher, rollout.trajectories, self.config.optimizer.token_budget)
        return self.objective.alpha * ratios_BL

    def _seconds_of_reward(self) -> float:
        """Spent in the reward so far, where the task counts them."""
        return float(getattr(getattr(self.task, "grader", None), "seconds", 0.0))


_MOVES = ("end", "shape")


def _select(chosen_P: np.ndarray, items: Sequence[Item], indices: Sequence[int]) -> tuple[list[Item], list[int]]:
    """The chosen items and their stream indices."""
    rows = np.flatnonzero(chosen_P).tolist()
    return [items[row] for row in rows], [indices[row] for row in rows]
