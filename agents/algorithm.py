"""What the agents share: how they train.

An update is GKD's Algorithm 1 with a reward: sample texts (`collect_rollouts`), turn their scores into advantages
(`credit`), and descend the loss of Eq. 5 (`train`, `gradient_step`). How an agent is built and saved is in agent.py,
what is measured of an update besides its loss in measurements.py.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from rlgkd.agents.advantages import Credit, Rewards, credit_of, no_credit, rewards_of
from rlgkd.agents.agent import TextAgent
from rlgkd.agents.gating import gated
from rlgkd.agents.measurements import (
    record_agreement,
    record_row,
    record_terms,
    record_update,
    terms_are_due,
    with_agreement,
)
from rlgkd.agents.metrics import CONSTANT_UPDATES, constant_reward, of_constant_reward
from rlgkd.agents.micro_batch import prefetch_teacher_states
from rlgkd.agents.mismatch import corrected
from rlgkd.agents.pass_rates import updated
from rlgkd.agents.replay import drawn, kept, replayed
from rlgkd.agents.resample import resampled
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import Means, accumulate_gradient
from rlgkd.agents.waiting import WaitingTexts
from rlgkd.errors import TrainingError
from rlgkd.objective import Objective
from rlgkd.sharding import clip_gradients, release, sum_gradients
from rlgkd.teachers import OutsideTeacher, Teacher, cancelled_on_error, in_process, model_of
from rlgkd.types import Item


class TextAlgorithm(TextAgent):
    """Base of the agents: collects trajectories and descends Eq. 5."""

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: None = None, n_rollout_steps: int = 0
    ) -> bool:
        """Sample the texts of an update: from the student with probability `student_fraction` (GKD, Algorithm 1).

        `env` is not stepped: the agent decodes whole texts of the environment's task. Returns whether to go on.
        """
        callback.on_rollout_start()
        if self.ends:  # a callback may have said so just now
            return False
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

        index_of: dict[str, int] = {}

        def collect(
            items: Sequence[Item], indices: Sequence[int], fraction: float, waiting: WaitingTexts | None = None
        ) -> Rollout:
            index_of.update((item.key, index) for item, index in zip(items, indices, strict=True))
            rollout = self.collector.collect(
                items,
                indices,
                update=self._n_updates,
                student_fraction=fraction,
                on_step=on_step,
                waiting=waiting,
            )
            self.state.next_prompt = indices[-1] + 1
            return rollout

        fraction = self.config.student_fraction(self._objective_progress)
        with self.autocast():
            self.rollout = collect(items, indices, fraction, self._waiting_texts())
            if self.config.reward.drop_even_groups == "resample":
                self.rollout = resampled(
                    self.rollout,
                    # On-policy: what is replaced were groups of the student's.
                    lambda number: collect(*self.collector.next_items(self.state, number), 1.0),
                    rounds=self.config.reward.resample_rounds,
                    group_size=self.config.sampling.group_size,
                    keeps_even=self.config.reward.distil_even_groups,
                )
            self.rollout = self._corrected(self.rollout)
        self.state.waiting = None
        # Steps counted this rank's tokens as they came; what training is measured by are those of all ranks.
        self.num_timesteps = before + self.rollout.tokens
        going = not self.rollout.stopped  # callbacks read it by this name, in their `locals`
        if going:
            seen = [*self.rollout.on_policy, *self.rollout.discarded]
            rewards = [t.score.reward for t in seen]
            if self.config.sampling.prompts_by == "pass_rate":
                passed_from = self.config.sampling.passed_from
                self.state.pass_rates = updated(self.state.pass_rates, seen, passed_from=passed_from)
            self.state.rewards = self.state.rewards.updated(rewards, [not math.isnan(reward) for reward in rewards])
            assert self.ep_info_buffer is not None
            self.ep_info_buffer.extend({"r": t.score.reward, "l": t.length, "t": 0.0} for t in self.trajectories)
            if self.config.sampling.replay_size:
                self._replay(index_of)
        self.logger.record("time/sampling", time.perf_counter() - self._began, exclude="csv")
        self.logger.record("time/reward", self.collector.seconds_of_reward - reward_began, exclude="csv")
        callback.update_locals(locals())
        callback.on_rollout_end()
        return going

    def _replay(self, index_of: Mapping[str, int]) -> None:
        """Let texts of earlier updates join the rollout, and keep its own for later ones."""
        sampling, seed = self.config.sampling, self.seed or 0
        groups = drawn(self.state.replay, sampling.replay_prompts, seed=seed, update=self._n_updates)
        self.state.replay = kept(
            self.state.replay, self.rollout, index_of, sampling.group_size, size=sampling.replay_size
        )
        in_policy_term = sampling.replay_terms == "both"
        self.rollout = replayed(self.rollout, groups, self.collector.item, in_policy_term=in_policy_term)

    def _waiting_texts(self) -> WaitingTexts | None:
        """The texts of this update, if servers have sampled them while the last one trained."""
        served, own = self.collector.served, self.config
        if served is None or not own.served.staleness:
            return None
        return served.waiting(self.state, own.sampling.group_size)

    def _corrected(self, rollout: Rollout) -> Rollout:
        """A rollout that servers have sampled, compared with the student (rlgkd.agents.mismatch)."""
        if self.collector.served is None or rollout.stopped or not rollout.on_policy:
            return rollout
        rollout, metrics = corrected(
            rollout, self.student, self.teacher, self.config.served, token_budget=self.config.optimizer.token_budget
        )
        for name, value in metrics.items():
            self.logger.record(name, value)
        return rollout

    def _begin_next_texts(self) -> None:
        """With staleness, let servers sample the next texts by the weights from before this update trains."""
        served = self.collector.served
        if served is not None and self.config.served.staleness and self.num_timesteps < self._total_timesteps:
            with self.autocast():
                items, indices = self.collector.next_items(self.state)
                served.begin_next(self._n_updates + 1, items, indices, self.config.sampling.group_size)

    def train(self) -> None:
        """Descend the loss of Eq. 5 over the rollout: its credit, then `epochs` steps of the optimizer."""
        try:
            with cancelled_on_error(self.teacher):
                self._begin_next_texts()
                self._train()
        except BaseException:
            if self.collector.served is not None:
                self.collector.served.cancel()
            raise

    def _train(self) -> None:
        began = time.perf_counter()
        self.policy.forget()
        self._update_learning_rate(self.policy.optimizer)
        # At the progress that the learning rate has, the one after the update's texts, as in SB3. Lambda is the one by
        # which the texts were drawn.
        self.objective = self.config.objective_at(
            self._objective_progress, alpha=self.state.alpha, student_fraction=self.rollout.student_fraction
        )
        mismatch = math.nan
        with self.autocast():
            self.rollout = self.rollout.split(self.student, self.config.optimizer.token_budget, self.teacher)
            if self.config.recomputes_log_probabilities:
                logp_BL = self.rollout.log_probabilities(self.student, self.config.optimizer.token_budget)
                mismatch = self.rollout.mismatch(logp_BL)
                self.rollout = self.rollout.with_log_probabilities(logp_BL, self.student)
        credit = self.gated(self.credit(self.rollout))
        teacher_lm = model_of(self._teacher_of_loss)
        # Each epoch reads the same states of a teacher that stays: computed once, at the memory of [tokens, hidden].
        if self.config.optimizer.epochs > 1 and teacher_lm is not None and self.following_teacher is None:
            with self.autocast():
                prefetch_teacher_states(teacher_lm, self.rollout.micro_batches)
        if terms_are_due(self):
            record_terms(self, self._accumulate, credit)
        rollout = with_agreement(self, self.rollout)
        for epoch in range(self.config.optimizer.epochs):
            means = self.gradient_step(rollout, credit)
            if epoch == 0:  # the student that sampled is measured, not a later one
                record_agreement(self, rollout)
                mismatch = means.mismatch if math.isnan(mismatch) else mismatch
                rollout = self.rollout
        if not math.isnan(mismatch) and self.collector.served is None:  # else known since the texts came
            self.logger.record("train/mismatch", mismatch)
        self.rollout.forget_teacher_states()
        release(self.student, self.teacher)
        record_update(self, means)
        if self.steering is not None and self.rollout.on_policy and math.isfinite(means.divergence):
            self.steering.step(self.state, alpha=self.objective.alpha, divergence=means.divergence)
        self.logger.record("time/update", time.perf_counter() - began, exclude="csv")

    @property
    def _objective_progress(self) -> float:
        """The remaining progress of the objective's schedules, 1 to 0; that of `learn` unless they are reconfigured."""
        (begin, end), now = self.objective_schedules, self._current_progress_remaining
        return min(1.0, max(0.0, (now - end) / (begin - end)))

    @property
    def outside_teacher(self) -> OutsideTeacher | None:
        """The teacher, if it is not a model in this process."""
        return None if in_process(self.teacher) else self.teacher

    @property
    def _teacher_of_loss(self) -> Teacher | None:
        """The teacher, but for a model in this process where texts alone are learned from."""
        return None if self.objective.cross_entropy and in_process(self.teacher) else self.teacher

    def after_update(self) -> None:
        """Take in texts that were sampled meanwhile, and warn once of a reward that never differs."""
        if self.collector.served is not None:
            self.collector.served.resolve_next(self.state)
        if self.state.updates >= CONSTANT_UPDATES and self.constant_reward is not None:
            self.watch.warn_once("reward", of_constant_reward(self.constant_reward, self.state.rewards.count))

    def credit(self, rollout: Rollout) -> Credit:
        """Turn the rollout's scores into advantages."""
        costs_BL = self._divergence_costs(rollout)
        if not rollout.on_policy or (self.objective.alpha == 1 and costs_BL is None):
            return no_credit(rollout.trajectories)
        rewards = self._rewards(rollout)
        group_size = self.config.sampling.group_size
        return credit_of(rollout, rewards, self.config.reward, group_size=group_size, costs_BL=costs_BL)

    def gated(self, credit: Credit) -> Credit:
        """The credit with the weights of the gate, if there is one."""
        began = time.perf_counter()
        with self.autocast():
            credit, metrics = gated(
                credit,
                self.rollout,
                self.objective,
                self.student,
                self.teacher,
                group_size=self.config.sampling.group_size,
                answers=self.teacher_answers,
            )
        if self.objective.gate.name != "none":
            self.logger.record("time/gate", time.perf_counter() - began, exclude="csv")
        for name, value in metrics.items():
            self.logger.record(name, value)
        return credit

    def gradient_step(self, rollout: Rollout, credit: Credit) -> Means:
        """One gradient over the whole rollout, one step of the optimizer."""
        # A loss that reads no teacher gets it all the same where the agreement with it is measured in this pass.
        teacher = self._teacher_of_loss if rollout.agreement is None else self.teacher
        means = self._accumulate(self.config.loss_objective(self.objective), teacher, rollout, credit)
        optimizer = self.policy.optimizer
        norm = clip_gradients(self._trained(), self.max_grad_norm)
        if not norm.isfinite():  # an error here, not a model of NaNs one step later
            optimizer.zero_grad()
            remedy = "the weights are as before the step; lower learning_rate, raise temperature, or change divergence"
            raise TrainingError("gradient", norm.item(), remedy)
        optimizer.step()
        optimizer.zero_grad()
        if self.following_teacher is not None:
            self.following_teacher.step()
            rollout.forget_teacher_states()  # they are of the teacher before this step
        self.logger.record("train/loss", means.loss)
        self.logger.record("train/entropy", means.entropy)
        self.logger.record("train/grad_norm", norm.item())
        if self.teacher is not None or self.objective.cross_entropy:
            self.logger.record("train/divergence", means.divergence)
        for name, value in means.divergence_by_teacher.items():
            self.logger.record(f"teacher/{name}/divergence", value)
        for name, value in credit.auxiliary.metrics().items() if credit.auxiliary else ():
            self.logger.record(name, value)
        return means

    def _accumulate(
        self,
        objective: Objective,
        teacher: Teacher | None,
        rollout: Rollout,
        credit: Credit,
        with_policy_term: bool = True,
    ) -> Means:
        """The gradient over the whole rollout, in parameters that had none."""
        while True:
            failed_B = rollout.failed_B()
            left_out_B = failed_B | rollout.untaught_B
            with self.autocast():
                means = accumulate_gradient(
                    self.student,
                    teacher,
                    objective,
                    rollout,
                    credit,
                    max_new_tokens=self.task.max_new_tokens,
                    with_policy_term=with_policy_term,
                    left_out_B=left_out_B if left_out_B.any() or rollout.answers is not None else None,
                )
            if teacher is None or torch.equal(failed_B, rollout.failed_B()):
                break
            # An outside teacher failed while micro-batches ran whose weights had counted on it: once more without.
            self.policy.optimizer.zero_grad()
            if credit.auxiliary is not None:
                credit.auxiliary.metrics()  # forgets the losses of the pass that does not count
        if teacher is not None and teacher is self.outside_teacher:
            # Failures are counted by each rank for its own texts: where one has too many, all leave here.
            self.ranks.together(teacher.resolve)
        sum_gradients(self._trained(), self.ranks)
        return means

    def _trained(self) -> list[torch.Tensor]:
        """The parameters that the optimizer steps."""
        return [p for group in self.policy.optimizer.param_groups for p in group["params"]]

    @property
    def constant_reward(self) -> float | None:
        """The reward, if it has been identical for every sample so far; see `rlgkd.agents.metrics`."""
        return constant_reward(self.state.rewards, self.rollout, self.objective)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write one row: means over the latest batch, so that a row depends on its update alone."""
        record_row(self, iteration, seconds=time.perf_counter() - self._began)
        self.last_metrics = dict(self.logger.name_to_value)
        self.watch.see(self.last_metrics)
        self.logger.dump(step=self.num_timesteps)

    def _rewards(self, rollout: Rollout) -> Rewards:
        """The rewards of the actions of on-policy trajectories; with `in_reward`, times 1 - alpha."""
        deviation = self.state.rewards.std
        rewards = rewards_of(
            rollout.on_policy, self.config.reward, deviation=deviation, max_new_tokens=self.task.max_new_tokens
        )
        if self.config.reward.combination == "in_loss":
            return rewards
        known_B = ~rollout.failed_B(wait=True)[: len(rollout.on_policy)]  # else what it is charged is not known
        values_BL = (1 - self.objective.alpha) * rewards.values_BL.masked_fill(~known_B[:, None], 0.0)
        return dataclasses.replace(rewards, values_BL=values_BL, valid_B=rewards.valid_B & known_B)

    def _divergence_costs(self, rollout: Rollout) -> torch.Tensor | None:
        """[B, L], what `in_reward` charges each action: alpha (log p_S - log p_T), p_S as it sampled; else None."""
        if self.config.reward.combination == "in_loss" or self.teacher is None:
            return None
        with self.autocast():
            ratios_BL = rollout.log_ratios(self.teacher, self.config.optimizer.token_budget)
        return self.objective.alpha * ratios_BL
