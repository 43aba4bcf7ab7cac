"""What the agents share: a Stable-Baselines3 algorithm whose policy is a language model.

SB3's OnPolicyAlgorithm gives the interface (learn, callbacks, loggers, predict). Replaced are: its buffer of single
steps, for a sequence is one sample here; its training loop's order of logging, so that the row of an update holds that
update's losses; and its pickled files, for Hugging Face folders. A timestep is a generated token, and callbacks are
called once for each lockstep of the batch, as SB3 calls them once for each step of its vector environment.

Nothing random is global: a sample's stream belongs to (seed, item, its place in the order of items, sample number), the
coin of `student_fraction` to (seed, update), the items to (seed, cursor). So `counters` is all that a resumed run needs
beside the weights and the optimizer.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from accelerate import Accelerator
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.agents.advantages import advantages, rewards_of_actions
from rlgkd.agents.async_scoring import Later
from rlgkd.agents.config import least_student_fraction, objective_at, resolve
from rlgkd.agents.models import check_same_shape, learnt, open_models
from rlgkd.agents.persistence import TEACHER, agent_folder, read_settings, write_settings
from rlgkd.agents.sb3.env_wrappers import as_sb3, check_wrappers
from rlgkd.agents.sb3.policy import LanguageModelPolicy
from rlgkd.agents.sources import Sources
from rlgkd.agents.update import Beside, accumulate_gradient, log_ratios, of_each_action, read_ahead
from rlgkd.errors import SettingError
from rlgkd.lm.fused_loss import fused_logp
from rlgkd.lm.loading import save
from rlgkd.lm.model import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops._registry import checked_kwargs
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.returns import overlong_penalty
from rlgkd.ops.running_mean_std import RunningMeanStd
from rlgkd.ops.sampling import uniforms
from rlgkd.ops.schedule import Schedule, steered
from rlgkd.rollout import check_reference, rollout
from rlgkd.types import ON_POLICY, Item, Score, StopReason, Task, Trajectory

_log = logging.getLogger(__name__)
PATIENCE = 5
"""Updates before a reward that does not differ is pointed out."""
FUSED = ("cpu", "cuda")
"""Where torch has AdamW as one kernel."""


class TextAlgorithm(OnPolicyAlgorithm):
    """Base of the agents: builds models and optimizer, collects trajectories, descends Eq. 5, saves and loads."""

    trajectories: list[Trajectory]
    """The latest rollout."""
    preset: ClassVar[Mapping[str, Any]] = {}
    """Settings that the algorithm fixes."""
    defaults: ClassVar[Mapping[str, Any]] = {
        "alpha": 0.5, "advantage": "leave_one_out", "policy_loss": "reinforce", "policy_reduction": "sequence_sum",
        "ratio": "token",
    }  # fmt: skip
    """Settings that it chooses where None is given."""

    @checked_kwargs
    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: GymEnv | str,
        *,
        teacher: str | Path | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        alpha: float | Schedule | None = None,
        divergence: str = "reverse_kl",
        beta: float | None = None,
        normalized: bool = False,
        skew: float | None = None,
        teacher_top_k: int | None = None,
        student_fraction: float | Schedule = 1.0,
        mixture: str = "batch",
        off_policy: str = "references",
        teacher_texts: str | Path | None = None,
        behaviour: str | None = None,
        teacher_share: float | None = None,
        kept_top_k: int | None = None,
        estimator: str = "exact",
        horizon: float = 0.0,
        advantage: str | None = None,
        policy_loss: str | None = None,
        policy_reduction: str | None = None,
        divergence_reduction: str = "sequence_mean",
        clip_low: float | None = None,
        clip_high: float | None = None,
        ratio: str | None = None,
        entropy_bonus: float = 0.0,
        drop_even_groups: bool = False,
        overlong_buffer: int = 0,
        normalise_rewards: bool = False,
        combination: str = "in_loss",
        divergence_target: float | None = None,
        alpha_rate: float = 0.1,
        teacher_decay: float | None = None,
        temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        prompts_per_update: int = 16,
        train_prompts: int | None = None,
        group_size: int = 4,
        epochs: int = 1,
        learning_rate: float | Schedule = 1e-4,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        token_budget: int = 16384,
        rows_at_once: int | None = None,
        compile_decoding: bool = False,
        student_layers: Sequence[int] = (),
        lora_rank: int = 0,
        lora_alpha: int | None = None,
        gradient_checkpointing: bool = False,
        precision: str = "float32",
        device: str = "auto",
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
    ) -> None:
        """Build student, teacher and optimizer.

        Args:
            policy: The student: a path, a hub name, `embedded:NAME`, `smollm2-135m`, or a loaded model, which is
                trained in place.
            env: A registered id, an environment of `rlgkd.envs` (scalar or vector) or an SB3 VecEnv of them; the
                agent reads its task (prompts, tokenizer, limits, reward) and samples all rows in lockstep itself.
            teacher: As `policy`; may be left out only if alpha is 0.
            tokenizer: The student's, for a loaded model; by default the one of its name, else the environment's.
            alpha: Weight of the divergence in Eq. 5, in [0, 1]: a number, or a schedule of the remaining progress
                (1 to 0; see `rlgkd.ops.schedule`); None is the agent's own.
            divergence: By its name in `rlgkd.ops.divergence`.
            beta: Of a divergence that takes it.
            normalized: Of a divergence that takes it.
            skew: Of a divergence that takes it.
            teacher_top_k: The divergence sees the teacher's k most probable tokens and the rest as one; None: all.
            student_fraction: The paper's lambda: probability that an update's batch is sampled from the student; a
                number or a schedule, as alpha.
            mixture: What the coin of `student_fraction` is thrown for: `batch` (the paper's) or each `prompt`.
            off_policy: What the other texts are: `references` or the `teacher`'s.
            teacher_texts: File in which the teacher's texts are kept, one for each item; None draws them anew.
            behaviour: Who samples: None is the student alone, else by its name in `rlgkd.ops.behaviour_policy`.
            teacher_share: Of a behaviour that takes it.
            kept_top_k: Of a behaviour that takes it.
            estimator: `exact`, `sampled` or `sampled_centred`.
            horizon: How much of the divergence at later tokens a token answers for, in [0, 1].
            advantage: What the task rewards become, by its name in `rlgkd.ops.returns`; None is the agent's own.
            policy_loss: By its name in `rlgkd.ops.policy_loss`; None is the agent's own.
            policy_reduction: How the policy term averages, by its name in `rlgkd.ops.reduction`; None is the agent's.
            divergence_reduction: How the divergence averages.
            clip_low: Of a policy loss that takes it.
            clip_high: Of a policy loss that takes it.
            ratio: Of `token` or `sequence`: what such a policy loss holds; None is the agent's own.
            entropy_bonus: Weight of the policy's entropy in the objective, in reward per nat.
            drop_even_groups: Leave a prompt whose samples all earned the same out of the policy term's mean.
            overlong_buffer: Tokens before the length limit over which a penalty grows to 1; 0 is none.
            normalise_rewards: Divide task rewards by the standard deviation of all that were seen so far.
            combination: `in_loss`: the divergence is a term beside the policy's, added after the reward has become an
                advantage. `in_reward`: the sampled reverse KL, summed over a text, is a cost in the reward before.
            divergence_target: Nats at which alpha is steered to hold the divergence; None leaves alpha alone.
            alpha_rate: How fast: the log-odds of alpha move by this at most, at each update.
            teacher_decay: Share of the teacher that stays after each step, the rest becomes the student's: an average
                of the student's past as the anchor, for a teacher of the student's shape. None leaves it alone.
            temperature: The student's, in sampling and scoring alike.
            teacher_temperature: The teacher's, in scoring and where it writes.
            prompts_per_update: Prompts of one update.
            train_prompts: Train on this many items alone, again and again; None takes as many as come.
            group_size: Samples of each prompt.
            epochs: Steps of the optimizer on each rollout.
            learning_rate: Of AdamW; a number or a schedule of the remaining progress (1 to 0).
            weight_decay: Of AdamW, on matrices alone.
            max_grad_norm: The gradient is scaled down to this norm.
            token_budget: Tokens, padding included, of one micro-batch: bounds the memory, changes nothing else.
            rows_at_once: Texts that are written at a time, those that wait taking the places of those that end: bounds
                the memory of keys and values, changes nothing else. None: all.
            compile_decoding: Let torch.compile make one program of a step of writing, for accelerators, and on CUDA a
                graph of that; of the Llama family's models.
            student_layers: Keep only these layers of `policy`.
            lora_rank: Train LoRA adapters of this rank on all linear layers and leave the model itself frozen (`pip
                install 'rlgkd[lora]'`); 0 trains the model. A teacher that is the student's start then takes no memory
                of its own. What `save` writes has the adapters merged, and `load` begins new ones on that.
            lora_alpha: What the adapters add is scaled by lora_alpha / lora_rank; None is twice the rank.
            gradient_checkpointing: Compute the layers' inner values anew for the gradient and keep none: a third more
                work in an update for the memory of one layer in place of all.
            precision: `float32`, or `bfloat16` for mixed precision.
            device: `auto` or what `accelerate` uses anyway (`cpu` forces the CPU).
            seed: Of everything random.
            verbose: 0 or 1, as in SB3.
            tensorboard_log: Folder for TensorBoard events.
            stats_window_size: Episodes in SB3's `ep_info_buffer`.

        Raises: SettingError, ModelError, DependencyError.
        """
        self.settings = resolve(locals(), agent=type(self).__name__, preset=self.preset, defaults=self.defaults)
        self.objective = objective_at(self.settings, 1.0)
        self._models: dict[str, Any] = {
            "policy": self.settings["policy"], "teacher": self.settings["teacher"], "tokenizer": tokenizer,
            "layers": student_layers, "temperature": temperature, "teacher_temperature": teacher_temperature,
            "lora_rank": lora_rank, "lora_alpha": lora_alpha, "gradient_checkpointing": gradient_checkpointing,
        }  # fmt: skip
        self.prompts_per_update, self.group_size, self.token_budget = prompts_per_update, group_size, token_budget
        self.weight_decay, self.epochs = weight_decay, epochs
        self.accelerator = Accelerator(cpu=str(device) == "cpu")
        if self.accelerator.num_processes > 1:
            raise SettingError("processes", self.accelerator.num_processes, "this version trains in one process")
        if str(device) not in ("auto", self.accelerator.device.type, str(self.accelerator.device)):
            raise SettingError("device", device, f"accelerate runs on {self.accelerator.device}; give auto or cpu")
        self.mixed_precision = precision == "bfloat16"
        self.cursor = 0
        self.rewards_seen = RunningMeanStd()
        self._told_of_reward = False
        self.trajectories = []
        self._ahead: list[torch.Tensor] = []
        self.latest: dict[str, Any] = {}
        super().__init__(
            policy=LanguageModelPolicy,  # type: ignore[arg-type]  # SB3's actor-critic is not needed here
            env=as_sb3(env),
            learning_rate=learning_rate,
            n_steps=1, gamma=1.0, gae_lambda=1.0, ent_coef=0.0, vf_coef=0.0,
            max_grad_norm=max_grad_norm, use_sde=False, sde_sample_freq=-1,
            stats_window_size=stats_window_size, tensorboard_log=tensorboard_log, verbose=verbose, seed=seed,
            device=self.accelerator.device,
        )  # fmt: skip

    def _setup_model(self) -> None:
        """Open the models and build the optimizer; SB3 calls it at the end of its own construction."""
        self._setup_lr_schedule()
        assert self.env is not None
        check_wrappers(self.env)
        self.task: Task = self.env.get_attr("task")[0]
        self.split: str = self.env.get_attr("split")[0]
        self.student: LanguageModel
        self.teacher: LanguageModel | None
        given, seed = self.settings, self.seed or 0
        if given["overlong_buffer"]:
            overlong_penalty(torch.zeros(0, device="cpu"), self.task.max_new_tokens, given["overlong_buffer"])
        if least_student_fraction(given) < 1 and given["off_policy"] == "references":
            check_reference(self.task.item(self.split, seed, 0))
        teacher = given["teacher"]
        if (
            given["teacher_decay"] is not None
            and isinstance(teacher, PreTrainedModel)
            and teacher is not given["policy"]
        ):
            self._models["teacher"] = copy.deepcopy(teacher)  # it will move; the caller's stays
        self.student, self.teacher = open_models(self.task, seed=seed, device=self.device, **self._models)
        for lm in (self.student, self.teacher):
            if lm is not None:
                lm.rows_at_once, lm.compiled = given["rows_at_once"], given["compile_decoding"]
        self.parts: dict[str, torch.nn.Module] = {"student": learnt(self.student.module)}
        if given["teacher_decay"] is not None and self.teacher is not None:
            check_same_shape(self.student, self.teacher)
            self.parts["teacher"] = self.teacher.module
        self.later = Later(self.task)
        self.sources = Sources(
            self.student, self.teacher, self.later, seed=seed,
            off_policy=given["off_policy"], teacher_texts=given["teacher_texts"], behaviour=given["behaviour"],
            teacher_share=given["teacher_share"], kept_top_k=given["kept_top_k"],
        )  # fmt: skip
        self.policy: LanguageModelPolicy = LanguageModelPolicy(  # type: ignore[assignment]  # no actor-critic
            self.observation_space, self.action_space, self.student, seed=self.seed or 0
        )
        trained = [p for p in self.student.module.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.policy.optimizer = torch.optim.AdamW(
            groups, lr=self.lr_schedule(1.0), betas=(0.9, 0.95), fused=self.device.type in FUSED or None
        )
        # SB3's learn hands a buffer to collect_rollouts; a sequence is one sample here, so there is none.
        self.rollout_buffer = None  # type: ignore[assignment]

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the environment's rows and the action space; unlike SB3, no global generator is touched."""
        if seed is not None:
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """As SB3's, with a progress bar that counts tokens."""
        callback = CallbackList(callback) if isinstance(callback, list) else callback
        callback = callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
        return super()._init_callback(CallbackList([callback, _TokenBar()]) if progress_bar else callback)

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
            self._current_progress_remaining = 1.0 - self.num_timesteps / total_timesteps
            if not self.collect_rollouts(self.env, callback):
                break
            self._current_progress_remaining = max(0.0, 1.0 - self.num_timesteps / total_timesteps)
            self.train()
            self._n_updates += 1
            if self._n_updates >= PATIENCE and not self._told_of_reward and self.idle_reward is not None:
                self._told_of_reward = True
                _log.warning(
                    "reward: the same, %.3f, for all %d samples so far: nothing to learn from; look at the texts "
                    "(rollouts.jsonl of a run, or the agent's trajectories)", self.idle_reward, self.rewards_seen.count,
                )  # fmt: skip
            if log_interval and self._n_updates % log_interval == 0:
                self.dump_logs(self._n_updates)
        callback.on_training_end()
        return self

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: None = None, n_rollout_steps: int = 0
    ) -> bool:
        """Fill `trajectories`: from the student with probability `student_fraction` (GKD, Algorithm 1)."""
        callback.on_rollout_start()
        self.policy.forget()
        self._began, reward_began = time.perf_counter(), self._seconds_of_reward()
        seed = self.seed or 0
        places = range(self.cursor, self.cursor + self.prompts_per_update)
        several = self.settings["train_prompts"]
        items = [self.task.item(self.split, seed, place % several if several else place) for place in places]
        self.objective = objective_at(self.settings, self._current_progress_remaining)
        going = True

        def on_step(tokens: int) -> bool:
            nonlocal going
            self.num_timesteps += tokens
            callback.update_locals({"self": self, "items": items})
            going = callback.on_step()
            return going

        coins = uniforms(seed, "student_fraction", self._n_updates, len(items))
        if self.settings["mixture"] == "batch":
            coins[:] = coins[0]
        own_P = coins < self.objective.student_fraction
        self.trajectories, self._ahead = [], []
        written: list[Trajectory] = []
        with self.autocast(), self.later:
            if own_P.any():
                written += self.sources.own(*_where(own_P, items, places), self.group_size, on_step)
            if not own_P.all() and going:
                copies = self.group_size if self.settings["mixture"] == "prompt" else 1  # a prompt counts as a prompt
                written += (given := self.sources.given(*_where(~own_P, items, places), copies))
                on_step(sum(t.length for t in given))
            if self.later.waiting and self.teacher is not None:
                self._ahead = read_ahead(
                    self.student, self.teacher, written, self.token_budget, go_on=lambda: self.later.waiting
                )
            self.trajectories = self.later.settled(written)
        self.cursor += len(items)
        rewards = [t.score.reward for t in self.trajectories if t.source in ON_POLICY]
        self.rewards_seen = self.rewards_seen.updated(rewards, [not math.isnan(reward) for reward in rewards])
        episodes = [{"r": t.score.reward, "l": t.length, "t": 0.0} for t in self.trajectories]
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend(episodes)
        self.logger.record("time/sampling", time.perf_counter() - self._began, exclude="csv")
        self.logger.record("time/reward", self._seconds_of_reward() - reward_began, exclude="csv")
        callback.update_locals(locals())
        callback.on_rollout_end()
        return going

    @property
    def idle_reward(self) -> float | None:
        """What all samples so far have earned, where it was the same and alpha gives it weight: it moves nothing.

        None where rewards differ, within a text too.
        """
        seen, steps = self.rewards_seen, any(t.score.steps for t in self.trajectories)
        return seen.mean if seen.count and seen.is_constant and not steps and self.objective.alpha < 1 else None

    def _seconds_of_reward(self) -> float:
        """Spent in the reward so far, where the task counts them."""
        return float(getattr(getattr(self.task, "grader", None), "seconds", 0.0))

    def train(self) -> None:
        """Steps of AdamW down Eq. 5's loss over `trajectories`, and the record of the last."""
        began = time.perf_counter()
        self.policy.forget()
        self._update_learning_rate(self.policy.optimizer)
        if self.mixed_precision and self.settings["policy_loss"] != "reinforce" and self.settings["behaviour"] is None:
            self._score_anew()
        advantages_BL = self.advantages()
        if self.epochs > 1 and self.teacher is not None and "teacher" not in self.parts:
            with self.autocast():
                self._ahead = read_ahead(
                    self.student, self.teacher, self.trajectories, self.token_budget, read=self._ahead
                )
        for _ in range(self.epochs):
            means = self._step(advantages_BL)
        self._ahead = []
        self.logger.record("train/alpha", self.objective.alpha)
        if (target := self.settings["divergence_target"]) is not None and self.trajectories[0].source in ON_POLICY:
            rate = self.settings["alpha_rate"]
            self.settings["alpha"] = steered(self.objective.alpha, means["divergence"], target, rate)
        self.logger.record("time/update", time.perf_counter() - began, exclude="csv")

    def advantages(self) -> torch.Tensor:
        """What the task reward makes of each trajectory or action; see rlgkd.agents.advantages."""
        costs_BL = self.costs_BL() if self.settings["combination"] == "in_reward" else None
        return advantages(self.trajectories, self.rewards_BL(), costs_BL, self.settings, alpha=self.objective.alpha)

    def _step(self, advantages_BL: torch.Tensor, beside: Beside | None = None) -> dict[str, float]:
        """One gradient over the whole batch, one step of the optimizer; returns the batch's means."""
        with self.autocast():
            means = accumulate_gradient(
                self.student, self.teacher, self._descended(), self.trajectories, advantages_BL,
                token_budget=self.token_budget, backward=self.accelerator.backward,
                max_new_tokens=self.task.max_new_tokens, beside=beside, ahead=self._ahead,
            )  # fmt: skip
        trained = [p for group in self.policy.optimizer.param_groups for p in group["params"]]
        # A gradient that is not a number is an error here, not a model of NaNs one step later.
        norm = torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm, error_if_nonfinite=True)
        self.policy.optimizer.step()
        self.policy.optimizer.zero_grad()
        if "teacher" in self.parts:
            self._follow(self.settings["teacher_decay"])
            self._ahead = []
        self.logger.record("train/loss", means["loss"])
        self.logger.record("train/entropy", means["entropy"])
        self.logger.record("train/grad_norm", norm.item())
        if self.teacher is not None or self.objective.cross_entropy:
            self.logger.record("train/divergence", means["divergence"])
        return means

    def _score_anew(self) -> None:
        """Log-probabilities as training forms them.

        In bfloat16 those of sampling differ by its rounding, which a narrow clip would take for a policy that moved.
        """
        with self.autocast():
            logp_BL = of_each_action(
                self.student, self.trajectories, self.token_budget,
                lambda states_NH, actions_N: fused_logp(self.student, states_NH, actions_N),
            )  # fmt: skip
        for row, t in enumerate(self.trajectories):
            logp_T = t.logp_T.copy()
            logp_T[t.action_mask_T] = logp_BL[row, : t.length].numpy()
            self.trajectories[row] = dataclasses.replace(t, logp_T=logp_T)

    def _descended(self) -> Objective:
        """Eq. 5 as the loss has it: `in_reward` leaves nothing of the divergence to it."""
        in_reward = self.settings["combination"] == "in_reward"
        return dataclasses.replace(self.objective, alpha=0.0) if in_reward else self.objective

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """The teacher moves to an average of the student's past."""
        assert self.teacher is not None
        for old, new in zip(self.teacher.module.parameters(), self.student.module.parameters(), strict=True):
            old.lerp_(new, 1.0 - decay)

    @property
    def modules(self) -> torch.nn.Module:
        """All that training changes: what a checkpoint must hold."""
        return self.parts["student"] if len(self.parts) == 1 else torch.nn.ModuleDict(self.parts)

    def autocast(self) -> torch.autocast:
        """The precision of sampling and scoring, the same in both."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision)

    def rewards_BL(self) -> torch.Tensor:
        """[B, L], what each action of the rollout's own texts earned; see rlgkd.agents.advantages."""
        return rewards_of_actions(
            self.trajectories, self.settings, alpha=self.objective.alpha, deviation=self.rewards_seen.std,
            max_new_tokens=self.task.max_new_tokens,
        )  # fmt: skip

    def costs_BL(self) -> torch.Tensor:
        """[B, L], what `in_reward` charges each action: alpha (log p_S - log p_T), p_S as it sampled; else 0."""
        if self.settings["combination"] == "in_loss" or self.teacher is None:
            longest = max(t.length for t in self.trajectories)
            return torch.zeros(len(self.trajectories), longest, dtype=torch.float64, device="cpu")
        with self.autocast():
            return self.objective.alpha * log_ratios(self.teacher, self.trajectories, self.token_budget)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write one row: means over the latest batch, so that a row depends on its update alone."""
        batch = self.trajectories
        rewards = np.array([t.score.reward for t in batch])
        self.logger.record("time/iterations", iteration, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        seconds = time.perf_counter() - self._began
        self.logger.record("time/tokens_per_second", sum(t.length for t in batch) / seconds, exclude="csv")
        self.logger.record("rollout/ep_rew_mean", float(np.nanmean(rewards)) if np.isfinite(rewards).any() else np.nan)
        cut = np.array([t.stop is StopReason.TRUNCATED for t in batch])
        self.logger.record("rollout/reward_failed", float((np.isnan(rewards) & ~cut).mean()))
        self.logger.record("rollout/truncated", float(cut.mean()))
        self.logger.record("rollout/ep_len_mean", float(np.mean([t.length for t in batch])))
        self.logger.record("rollout/ended", float(np.mean([t.stop == "end" for t in batch])))
        self.logger.record("rollout/student", float(np.mean([t.source in ON_POLICY for t in batch])))
        for part in sorted({name for t in batch for name in t.score.parts}):
            values = [t.score.parts[part] for t in batch if part in t.score.parts]
            self.logger.record(
                f"rollout/reward/{part}", float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
            )
        self.latest = dict(self.logger.name_to_value)
        self.logger.dump(step=self.num_timesteps)

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
        """Complete prompts as the environment would put them, and return the texts.

        The filters (rlgkd.ops.logit_filters) need `greedy=False`. Training has none: they change what a policy can
        write.
        """
        filters = Filters(top_k=top_k, top_p=top_p, min_p=min_p)
        items = [Item(key=f"generate/{n}", prompt=prompt) for n, prompt in enumerate(prompts)]
        unscored = _Unscored(self.task)
        return [t.text for t in rollout(self.student, unscored, items, seed=seed, greedy=greedy, filters=filters)]

    @property
    def counters(self) -> dict[str, Any]:
        """What training has reached, as JSON: all that is needed beside weights and optimizer to go on exactly."""
        steered = {} if self.settings["divergence_target"] is None else {"alpha": self.settings["alpha"]}
        return {
            "timesteps": self.num_timesteps, "updates": self._n_updates, "cursor": self.cursor, **steered,
            "rewards_seen": dataclasses.astuple(self.rewards_seen),
        }  # fmt: skip

    @counters.setter
    def counters(self, values: Mapping[str, Any]) -> None:
        self.num_timesteps, self._n_updates, self.cursor = values["timesteps"], values["updates"], values["cursor"]
        self.settings["alpha"] = values.get("alpha", self.settings["alpha"])
        self.rewards_seen = RunningMeanStd(*values.get("rewards_seen", ()))

    def save(  # type: ignore[override]
        self, path: str | Path, exclude: Any = None, include: Any = None
    ) -> None:
        """Write a Hugging Face folder with the agent's settings beside the model. SB3's `.zip` ending is dropped.

        It holds no optimizer: to go on exactly, use a checkpoint (`rlgkd.checkpoint`; `rlgkd train` writes them).
        """
        folder = agent_folder(path)
        save(self.student.module, self.student.tokenizer, folder)
        shutil.rmtree(folder / TEACHER, ignore_errors=True)
        if self.teacher is not None and "teacher" in self.parts:
            save(self.teacher.module, self.teacher.tokenizer, folder / TEACHER)
        write_settings(folder, type(self).__name__, self.settings, self.counters)

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: GymEnv | str | None = None, **settings: Any
    ) -> Self:
        """Open what `save` wrote, on `env`; `settings` override the saved ones.

        A teacher that was a loaded model and what was a function (a schedule) are not saved: give them again.

        Raises: CheckpointError if the folder is not an agent's; SettingError for what must be given.
        """
        folder = agent_folder(path)
        plain, counters = read_settings(folder, cls.__name__, given=settings)
        if env is None:
            raise SettingError("env", env, "give the environment to go on in, for its prompts, limits and reward")
        if plain.get("teacher_decay") is not None and "teacher" not in settings:
            plain["teacher"] = str(folder / TEACHER)
        agent = cls(env=env, **{**plain, "policy": str(folder), **settings})
        counters.pop("alpha", None)  # a steered alpha is among the settings, which may have been overridden
        agent.counters = counters
        return agent


def _where(chosen_P: np.ndarray, items: Sequence[Item], places: Sequence[int]) -> tuple[list[Item], list[int]]:
    """The chosen items and their places."""
    rows = np.flatnonzero(chosen_P).tolist()
    return [items[row] for row in rows], [places[row] for row in rows]


class _TokenBar(ProgressBarCallback):
    """SB3's bar, by the tokens really generated: rows that have ended make none."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._first = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._first - self.pbar.n)
        return True


class _Unscored:
    """A task whose texts earn nothing: for prompts from outside, which have no reference to be scored against."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def reply(self, item: Item, turns: Sequence[str]) -> None:
        return None

    def score(self, items: Sequence[Item], completions: Sequence[str], **more: Any) -> list[Score]:
        return [Score(reward=float("nan")) for _ in completions]
