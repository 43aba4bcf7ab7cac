"""What the agents share: a Stable-Baselines3 algorithm whose policy is a language model.

An update is GKD's Algorithm 1 with a reward: sample texts (`collect_rollouts`), turn their scores into advantages
(`credit`), and descend the loss of Eq. 5 (`train`, `gradient_step`).

SB3 gives the interface (learn, callbacks, loggers, predict); what it takes for texts is in sb3/token_algorithm.py. Its
pickled files are replaced by Hugging Face folders.

Nothing random is global: see `TrainingState`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from accelerate import Accelerator
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.agents._signature import AlgorithmSettings
from rlgkd.agents.adaptation import AlphaSteering, FollowingTeacher
from rlgkd.agents.advantages import Credit, Rewards, credit_of, no_credit, rewards_of
from rlgkd.agents.build import build_optimizer, check_same_start, open_models, trainable_state
from rlgkd.agents.collect import Collector
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.guards import Watch
from rlgkd.agents.metrics import (
    CONSTANT_UPDATES,
    LONG_TEXT,
    constant_reward,
    rollout_metrics,
    warn_of_constant_reward,
    warn_of_reductions,
)
from rlgkd.agents.micro_batch import prefetch_teacher_states
from rlgkd.agents.persistence import read_agent, write_agent
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.sb3.env_wrappers import as_sb3, check_wrappers
from rlgkd.agents.sb3.policy import LanguageModelPolicy
from rlgkd.agents.sb3.token_algorithm import TokenAlgorithm
from rlgkd.agents.signature import document
from rlgkd.agents.sources import Sources
from rlgkd.agents.update import Means, accumulate_gradient, divergence_per_reward
from rlgkd.errors import SettingError, TrainingError
from rlgkd.lm.model import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.returns import overlong_penalty
from rlgkd.ranks import join
from rlgkd.rollout import check_references, sample_episodes
from rlgkd.settings import span
from rlgkd.types import Item, Task, Trajectory


class TextAlgorithm(TokenAlgorithm):
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
        self.objective = self.config.objective_at(1.0)
        self.rollout = Rollout()
        self.last_metrics: dict[str, Any] = {}
        self._warned: set[str] = set()
        self.ranks = join()
        self.accelerator = Accelerator(cpu=str(device) == "cpu")
        if self.accelerator.num_processes > self.ranks.size:  # started by mpirun, say
            raise SettingError("processes", self.accelerator.num_processes, "start them with torchrun (docs/scale.md)")
        if str(device) not in ("auto", self.accelerator.device.type, str(self.accelerator.device)):
            raise SettingError("device", device, f"accelerate runs on {self.accelerator.device}; give auto or cpu")
        super().__init__(
            policy=LanguageModelPolicy,  # SB3's actor-critic is not needed here
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
            tensorboard_log=tensorboard_log if self.ranks.main else None,
            verbose=verbose if self.ranks.main else 0,
            seed=seed,
            device=self.accelerator.device,
        )
        self._build(policy, teacher, tokenizer)
        check_same_start(self.ranks, self.task, self.student, self.teacher, self.collector.next_items(self.state)[0])

    def _build(
        self,
        policy: str | Path | PreTrainedModel,
        teacher: str | Path | PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        """Open the models and build sources and optimizer."""
        policy = str(policy) if isinstance(policy, Path) else policy
        teacher = str(teacher) if isinstance(teacher, Path) else teacher
        models = {"policy": policy, "teacher": teacher}
        self._names = {role: model for role, model in models.items() if isinstance(model, str | None)}
        self._setup_lr_schedule()
        assert self.env is not None
        check_wrappers(self.env)
        config, seed = self.config, self.seed or 0
        self.task: Task = self.env.get_attr("task")[0]
        self.split: str = self.env.get_attr("split")[0]
        if buffer := config.reward.overlong_buffer:
            overlong_penalty(torch.zeros(0, device="cpu"), self.task.max_new_tokens, buffer)  # refuses a longer one
        if span(config.student_fraction)[0] < 1 and config.sampling.off_policy == "references":
            check_references(self.task, self.split, seed)
        self.student, self.teacher = open_models(
            self.task,
            config,
            policy=policy,
            teacher=teacher,
            tokenizer=tokenizer,
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
        self.watch = Watch(math.log(self.student.vocabulary))
        self.sources = Sources(
            self.student, self.teacher, self.task, seed=seed, sampling=config.sampling, ranks=self.ranks
        )
        self.collector = Collector(self.sources, config, split=self.split, seed=seed, ranks=self.ranks)
        self.policy: LanguageModelPolicy = LanguageModelPolicy(  # type: ignore[assignment]  # no actor-critic
            self.observation_space, self.action_space, self.student, seed=seed
        )
        self.policy.optimizer = build_optimizer(self.student.module, config, self.lr_schedule, self.device)
        # SB3's learn hands a buffer to collect_rollouts; a sequence is one sample here, so there is none.
        self.rollout_buffer = None  # type: ignore[assignment]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Refuse another environment: its task, tokenizer and limits are those that the agent was built for."""
        raise SettingError("env", type(env).__name__, "build an agent on it, or load(path, env=...) a saved one")

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: None = None, n_rollout_steps: int = 0
    ) -> bool:
        """Sample the texts of an update: from the student with probability `student_fraction` (GKD, Algorithm 1).

        `env` is not stepped: the agent decodes whole texts of the environment's task. Returns whether to go on.
        """
        callback.on_rollout_start()
        self.policy.forget()
        self._began, reward_began = time.perf_counter(), self.collector.seconds_of_reward
        items, indices = self.collector.next_items(self.state)
        before, ended = self.num_timesteps, len(self.trajectories)

        def on_step(tokens: int) -> bool:
            nonlocal ended
            self.num_timesteps += tokens
            # Callbacks of SB3 count episodes by `dones`: those of an update are over once it is whole.
            callback.update_locals({"self": self, "items": items, "dones": np.ones(ended, dtype=bool)})
            ended = 0
            return callback.on_step()

        fraction = self.config.student_fraction(self._current_progress_remaining)
        with self.autocast():
            self.rollout = self.collector.collect(
                items, indices, update=self._n_updates, student_fraction=fraction, on_step=on_step
            )
        self.num_timesteps = before + self.rollout.tokens
        going = not self.rollout.stopped
        self.state.next_prompt += len(items)
        if going:
            rewards = [t.score.reward for t in self.rollout.on_policy]
            self.state.rewards = self.state.rewards.updated(rewards, [not math.isnan(reward) for reward in rewards])
            assert self.ep_info_buffer is not None
            self.ep_info_buffer.extend({"r": t.score.reward, "l": t.length, "t": 0.0} for t in self.trajectories)
        self.logger.record("time/sampling", time.perf_counter() - self._began, exclude="csv")
        self.logger.record("time/reward", self.collector.seconds_of_reward - reward_began, exclude="csv")
        callback.update_locals(locals())
        callback.on_rollout_end()
        return going

    def train(self) -> None:
        """Descend the loss of Eq. 5 over the rollout: its credit, then `epochs` steps of the optimizer."""
        began = time.perf_counter()
        self.policy.forget()
        self._update_learning_rate(self.policy.optimizer)
        # At the progress that the learning rate has, the one after the update's texts, as in SB3. Lambda is the one by
        # which the texts were drawn.
        self.objective = self.config.objective_at(
            self._current_progress_remaining, alpha=self.state.alpha, student_fraction=self.rollout.student_fraction
        )
        with self.autocast():
            self.rollout = self.rollout.split(self.student, self.config.optimizer.token_budget, self.teacher)
            if self.config.recomputes_log_probabilities:
                logp_BL = self.rollout.log_probabilities(self.student, self.config.optimizer.token_budget)
                self.rollout = self.rollout.with_log_probabilities(logp_BL, self.student)
        credit = self.credit(self.rollout)
        if self.config.optimizer.epochs > 1 and self.teacher is not None and self.following_teacher is None:
            with self.autocast():
                prefetch_teacher_states(self.teacher, self.rollout.micro_batches)
        if self._measures_terms():
            self.measure_terms(self.rollout, credit)
        for _ in range(self.config.optimizer.epochs):
            means = self.gradient_step(self.rollout, credit)
        self.rollout.forget_teacher_states()
        self.logger.record("train/alpha", self.objective.alpha)
        if self.teacher is not None and self.objective.alpha < 1:
            self._record_beta()
        if self.steering is not None and self.rollout.on_policy:
            self.steering.step(self.state, alpha=self.objective.alpha, divergence=means.divergence)
        self.logger.record("time/update", time.perf_counter() - began, exclude="csv")

    def after_update(self) -> None:
        """Warn once of a reward that never differs."""
        if self.state.updates >= CONSTANT_UPDATES and self.constant_reward is not None and self._first("reward"):
            warn_of_constant_reward(self.constant_reward, self.state.rewards.count)

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
        means = self._accumulate(self.config.loss_objective(self.objective), self.teacher, rollout, credit)
        optimizer = self.policy.optimizer
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), self.max_grad_norm)
        if not norm.isfinite():  # an error here, not a model of NaNs one step later
            optimizer.zero_grad()
            remedy = "the weights are as before the step; lower learning_rate, raise temperature, or change divergence"
            raise TrainingError("gradient", norm.item(), remedy)
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

    def measure_terms(self, rollout: Rollout, credit: Credit) -> None:
        """Record the norms of the policy term's gradient and of the divergence's, each with its weight in Eq. 5.

        Costs a pass for each and leaves no gradient. A loss besides Eq. 5's, such as a value head's, is in neither.
        """
        credit = dataclasses.replace(credit, auxiliary=None)
        policy_alone = self.objective.model_copy(update={"horizon": 0.0})
        terms = {"policy": (policy_alone, None, True), "divergence": (self.objective, self.teacher, False)}
        for name, (objective, teacher, with_policy_term) in terms.items():
            self._accumulate(objective, teacher, rollout, credit, with_policy_term=with_policy_term)
            gradients = [p.grad for p in self.student.module.parameters() if p.grad is not None]
            self.logger.record(f"train/{name}_grad_norm", torch.nn.utils.get_total_norm(gradients).item())
            self.student.module.zero_grad()

    def _accumulate(
        self,
        objective: Objective,
        teacher: LanguageModel | None,
        rollout: Rollout,
        credit: Credit,
        *,
        with_policy_term: bool = True,
    ) -> Means:
        """The gradient over the whole rollout, added to the parameters'."""
        with self.autocast():
            means = accumulate_gradient(
                self.student,
                teacher,
                objective,
                rollout,
                credit,
                max_new_tokens=self.task.max_new_tokens,
                with_policy_term=with_policy_term,
            )
        self.ranks.sum_gradients(self._trained())
        return means

    def _trained(self) -> list[torch.Tensor]:
        """The parameters that the optimizer steps."""
        return [p for group in self.policy.optimizer.param_groups for p in group["params"]]

    def _measures_terms(self) -> bool:
        """Whether this update's gradient has two terms, and it is time to measure them."""
        every = self.config.optimizer.gradient_norms_every
        mixes = self.config.reward.combination == "in_loss" and 0 < self.objective.alpha < 1
        return mixes and every > 0 and self._n_updates % every == 0 and bool(self.rollout.on_policy)

    def _record_beta(self) -> None:
        """Record beta, and warn once if it changes with the length of texts."""
        alpha, ratio = self.objective.alpha, 1.0
        if self.config.reward.combination == "in_loss":
            ratio = divergence_per_reward(self.objective, self.trajectories, self.task.max_new_tokens)
        beta = alpha / (1 - alpha) * ratio
        self.logger.record("train/beta", beta)
        if alpha > 0 and max(ratio, 1 / ratio) > LONG_TEXT and self._first("beta"):
            warn_of_reductions(self.objective, beta)

    def _first(self, warning: str) -> bool:
        """Whether this warning is to be given: once, by the main process; from now on it has been."""
        given = warning in self._warned
        self._warned.add(warning)
        return self.ranks.main and not given

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
        """The models that training changes, which a checkpoint holds with the optimizer and the state."""
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
        self.watch.see(self.last_metrics)
        self.logger.dump(step=self.num_timesteps)

    def save(  # type: ignore[override]
        self, path: str | Path, exclude: Any = None, include: Any = None
    ) -> None:
        """Write a Hugging Face folder with the model and the agent's settings. SB3's `.zip` ending is dropped.

        It holds no optimizer: to go on exactly, use a checkpoint (`rlgkd.checkpoint`; `rlgkd train` writes them). Of
        several processes the main one alone writes.
        """
        if not self.ranks.main:
            return
        following = self.teacher if self.following_teacher is not None else None
        settings = {**self._names, "seed": self.seed, **self.config.flat()}
        write_agent(path, type(self).__name__, self.student, following, settings, self.state)

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: GymEnv | str | None = None, **settings: Any
    ) -> Self:
        """Open what `save` wrote, on `env`; `settings` override the saved ones.

        A teacher that was a loaded model and schedules that were functions are not saved: give them again.

        Raises: CheckpointError if the folder is not an agent's; SettingError for what must be given.
        """
        saved, state = read_agent(path, cls.__name__, cls.Config, settings)
        if env is None:
            raise SettingError("env", env, "give the environment to go on in, for its prompts, limits and reward")
        agent = cls(env=env, **saved)
        agent.state = state
        if "alpha" in settings or agent.steering is None:
            agent.state.alpha = None
        return agent

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
            ratios_BL = rollout.log_ratios(self.teacher, self.config.optimizer.token_budget)
        return self.objective.alpha * ratios_BL
