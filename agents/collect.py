"""Collects the texts of one update and their scores: GKD's Algorithm 1 up to the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rlgkd.agents.async_scoring import Scoring
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.micro_batch import micro_batches, prefetch_teacher_states
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.sources import Sources
from rlgkd.agents.state import TrainingState
from rlgkd.ops.sampling import uniforms
from rlgkd.types import Episode, Item, Score


class Collector:
    """Draws items, has texts sampled and scored, and uses the time while a reward is pending."""

    def __init__(self, sources: Sources, config: AlgorithmConfig, *, split: str, seed: int) -> None:
        self.sources, self.split, self.seed = sources, split, seed
        self.sampling, self.token_budget = config.sampling, config.optimizer.token_budget

    def next_items(self, state: TrainingState) -> tuple[list[Item], list[int]]:
        """The items of the next update, and their indices in the stream of items."""
        indices = list(range(state.next_prompt, state.next_prompt + self.sampling.prompts_per_update))
        few = self.sampling.train_prompts
        task = self.sources.task
        return [task.item(self.split, self.seed, index % few if few else index) for index in indices], indices

    def collect(
        self,
        items: Sequence[Item],
        indices: Sequence[int],
        *,
        update: int,
        student_fraction: float,
        on_step: Callable[[int], bool],
    ) -> Rollout:
        """Sample a text for each item, from the student with probability `student_fraction`, and score all.

        Args:
            items: The prompts.
            indices: Their indices in the stream of items.
            update: The number of the update, to which the coin of `student_fraction` belongs.
            student_fraction: The paper's lambda.
            on_step: Called with the number of tokens of each lockstep; False stops there, and nothing is scored.
        """
        on_policy_P = self._coins(update, len(items)) < student_fraction
        going = True

        def step(tokens: int) -> bool:
            nonlocal going
            going = on_step(tokens)
            return going

        parts = []
        with Scoring(self.sources.task) as scoring:
            episodes: list[Episode] = []
            if on_policy_P.any():
                chosen = _select(on_policy_P, items, indices)
                episodes = self.sources.on_policy(*chosen, self.sampling.group_size, step)
                if going:
                    scoring.submit(episodes)
            if not on_policy_P.all() and going:
                copies = self.sampling.group_size if self.sampling.mixture == "prompt" else 1  # prompts count alike
                others = self.sources.off_policy(*_select(~on_policy_P, items, indices), copies)
                step(sum(episode.length for episode in others))
                episodes = [*episodes, *others]
                if going:
                    scoring.submit(others)
            if going and scoring.pending and self.sources.teacher is not None:
                student, teacher = self.sources.student, self.sources.teacher
                parts = list(micro_batches(student, episodes, self.token_budget, teacher))
                prefetch_teacher_states(teacher, parts, should_continue=lambda: scoring.pending)
            if going:
                trajectories = scoring.trajectories()
            else:  # cut texts, from which no update learns: to score them would cost, and delay the stop
                trajectories = [episode.scored(Score(reward=math.nan)) for episode in episodes]
        return Rollout(trajectories=trajectories, micro_batches=parts, student_fraction=student_fraction)

    @property
    def seconds_of_reward(self) -> float:
        """Spent in the reward so far, if the task counts them."""
        return float(getattr(getattr(self.sources.task, "grader", None), "seconds", 0.0))

    def _coins(self, update: int, prompts: int) -> np.ndarray:
        """[P] in [0, 1): a prompt is on-policy where this is below lambda; one coin for all of a batch."""
        coins_P = uniforms(self.seed, "student_fraction", update, prompts)
        if self.sampling.mixture == "batch":
            coins_P[:] = coins_P[0]
        return coins_P


def _select(chosen_P: np.ndarray, items: Sequence[Item], indices: Sequence[int]) -> tuple[list[Item], list[int]]:
    """The chosen items and their stream indices."""
    rows = np.flatnonzero(chosen_P).tolist()
    return [items[row] for row in rows], [indices[row] for row in rows]
