"""Collects the texts of one update and their scores: GKD's Algorithm 1 up to the gradient.

Each process of a job samples and scores its share of the prompts, whole groups together. Then all of them have all
texts, in the order in which one process would have them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlgkd.agents.async_scoring import Scoring
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.micro_batch import MicroBatch, micro_batches, prefetch_teacher_states
from rlgkd.agents.pass_rates import drawn
from rlgkd.agents.rollout import Rollout, rows_by_tokens
from rlgkd.agents.served_texts import ServedTexts
from rlgkd.agents.siblings import with_siblings
from rlgkd.agents.sources import Sources
from rlgkd.agents.state import TrainingState
from rlgkd.agents.waiting import WaitingTexts
from rlgkd.lm.mixture import Scorer
from rlgkd.ops.sampling import uniforms
from rlgkd.ranks import ALONE, Ranks, with_items, without_items
from rlgkd.samplers.texts import count_steps
from rlgkd.sharding import is_sharded, whole
from rlgkd.teachers import Answer, OutsideTeacher, RoutedTeachers, cancelled_on_error, in_process, model_of
from rlgkd.types import Episode, Item, Score, Trajectory, reads_sibling


class Collector:
    """Draws items, has texts sampled and scored, and uses the time while a reward is pending."""

    def __init__(
        self,
        sources: Sources,
        config: AlgorithmConfig,
        *,
        split: str,
        seed: int,
        ranks: Ranks = ALONE,
        served: ServedTexts | None = None,
    ) -> None:
        self.sources, self.split, self.seed, self.ranks, self.served = sources, split, seed, ranks, served
        self.sampling, self.token_budget = config.sampling, config.optimizer.token_budget
        self.right_from = config.teacher.sibling_from
        self.reads_sibling = reads_sibling(config.teacher.teacher_prompt or "")

    def next_items(self, state: TrainingState, number: int | None = None) -> tuple[list[Item], list[int]]:
        """The next items, by default those of an update, and their indices in the stream of items."""
        sampling, first = self.sampling, state.next_prompt
        number = sampling.prompts_per_update if number is None else number
        indices = list(range(first, first + number))
        if sampling.prompts_by == "pass_rate":
            rates, floor = state.pass_rates, sampling.pass_rate_floor
            indices = drawn(rates, lambda index: self.item(index).key, first, number, floor=floor, seed=self.seed)
        return [self.item(index) for index in indices], indices

    def item(self, index: int) -> Item:
        """The item at an index of the stream."""
        few = self.sampling.train_prompts
        return self.sources.task.item(self.split, self.seed, index % few if few else index)

    def collect(
        self,
        items: Sequence[Item],
        indices: Sequence[int],
        *,
        update: int,
        student_fraction: float,
        on_step: Callable[[int], bool],
        waiting: WaitingTexts | None = None,
    ) -> Rollout:
        """Sample a text for each item, from the student with probability `student_fraction`, and score all.

        Args:
            items: The prompts.
            indices: Their indices in the stream of items.
            update: The number of the update, to which the coin of `student_fraction` belongs.
            student_fraction: The paper's lambda.
            on_step: Called with the number of tokens of each lockstep of this process; False stops before off-policy
                texts, and what is there is not scored.
            waiting: The on-policy texts of all processes, if servers have sampled them already.

        Raises: what a reward or a model raises; on the other processes ProcessError. SamplerError if servers have given
            no text.
        """
        on_policy_P = self._coins(update, len(items)) < student_fraction
        parts: list[MicroBatch] = []
        answers: list[Answer] = []

        if self.served is not None and waiting is None and on_policy_P.any():
            self.served.push()

        def share() -> _Share:
            # Texts alone go to the other ranks: micro-batches are on this device, and answers may be pending.
            own, parts[:], answers[:] = self._sample(on_policy_P, items, indices, on_step, waiting)
            return own if self.ranks.size == 1 else own.with_texts(without_items)

        # A sharded model that decodes must be whole: a rank with more steps than others would else wait for their part.
        writers = [lm for lm in self.sources.writers if self.served is None or lm is not self.sources.student]
        with cancelled_on_error(self.sources.teacher), whole(*writers):
            shares = self.ranks.gather(share)
        if self.ranks.size > 1:
            shares = [one.with_texts(lambda texts: with_items(texts, items)) for one in shares]
        for one in shares:
            self.sources.keep(one.drawn)
        stopped = any(one.stopped for one in shares)
        if stopped and self._outside is not None:
            self._outside.cancel()
        trajectories = [t for one in shares for t in one.on_policy] + [t for one in shares for t in one.off_policy]
        untaught: tuple[int, ...] = ()
        if (readers := self._readers_of_siblings) is not None and not stopped:
            trajectories, untaught = with_siblings(
                trajectories, readers, group_size=self.sampling.group_size, right_from=self.right_from
            )
        failed = sum(one.failed for one in shares) + (0 if waiting is None else waiting.failed)
        if self.served is not None and failed and not trajectories and not stopped:
            raise self.served.nothing_left(failed)
        rows = None
        if self.ranks.size > 1:
            if self._outside is not None or any(one.prefetched for one in shares):  # each has begun with its own
                rows = _sampled_rows(shares, self.ranks.rank)
                parts = [dataclasses.replace(part, rows=[rows[row] for row in part.rows]) for part in parts]
            else:
                rows = rows_by_tokens(trajectories, self.ranks)
        own_rows = range(len(answers)) if rows is None else rows
        return Rollout(
            trajectories=trajectories,
            micro_batches=parts,
            student_fraction=student_fraction,
            tokens=sum(one.tokens for one in shares),
            stopped=stopped,
            ranks=self.ranks,
            rows=rows,
            answers=None if self._outside is None or stopped else dict(zip(own_rows, answers, strict=True)),
            untaught=untaught,
            off_policy_from=self.sampling.off_policy_from,
            sampler_failed=failed / max(1, failed + sum(len(one.on_policy) for one in shares)),
        )

    @property
    def _outside(self) -> OutsideTeacher | None:
        """The teacher, if it is asked for texts; a model in this process is run on them."""
        teacher = self.sources.teacher
        return None if in_process(teacher) else teacher

    @property
    def _readers_of_siblings(self) -> Callable[[Item], Scorer] | None:
        """The teacher of an item, if it reads a right text of the group, which is known once all have their scores."""
        teacher = model_of(self.sources.teacher)
        if teacher is None or not self.reads_sibling:
            return None
        return teacher.of if isinstance(teacher, RoutedTeachers) else lambda item: teacher

    @property
    def seconds_of_reward(self) -> float:
        """Spent in the reward so far, if the task counts them."""
        return float(getattr(getattr(self.sources.task, "grader", None), "seconds", 0.0))

    def _sample(
        self,
        on_policy_P: np.ndarray,
        items: Sequence[Item],
        indices: Sequence[int],
        on_step: Callable[[int], bool],
        waiting: WaitingTexts | None,
    ) -> tuple[_Share, list[MicroBatch], list[Answer]]:
        """This process's texts, their micro-batches if the teacher ran while scores were pending, and its answers."""
        tokens, going = 0, True

        def step(number: int) -> bool:
            nonlocal tokens, going
            tokens += number
            going = on_step(number)
            return going

        parts: list[MicroBatch] = []
        answers: list[Answer] = []

        def submit(texts: Sequence[Episode]) -> None:
            """Have texts scored; an outside teacher is asked first, since a reward may take a while to be called."""
            if self._outside is not None:
                answers.extend(self._outside.submit(texts))
            scoring.submit(texts)

        on_policy, off_policy = (self._own(chosen_P, items, indices) for chosen_P in (on_policy_P, ~on_policy_P))
        with Scoring(self.sources.task) as scoring:
            episodes: list[Episode] = []
            failed = 0
            if on_policy[0]:
                if waiting is not None:
                    episodes = waiting.episodes(items, self.ranks.share(len(items)))
                    going = count_steps([episode.length for episode in episodes], step)
                elif self.served is not None:
                    texts = self.served.sample(*on_policy, self.sampling.group_size, step)
                    episodes, failed = list(texts.episodes), texts.failed
                else:
                    episodes = self.sources.on_policy(*on_policy, self.sampling.group_size, step)
                if going:
                    submit(episodes)
            number = len(episodes)
            if off_policy[0] and going:
                copies = self.sampling.group_size if self.sampling.mixture == "prompt" else 1  # prompts count alike
                others = self.sources.off_policy(*off_policy, copies)
                step(sum(episode.length for episode in others))
                episodes = [*episodes, *others]
                if going:
                    submit(others)
            student, teacher = self.sources.student, self.sources.teacher
            lm = model_of(teacher)
            # The passes of a sharded teacher are collective calls, and other processes may not be waiting.
            # One that reads siblings has nothing to read yet: which text is right is what the scores will say.
            idle = going and scoring.pending and not self.reads_sibling
            if idle and lm is not None and not is_sharded(lm.module):
                parts = list(micro_batches(student, episodes, self.token_budget, teacher))
                prefetch_teacher_states(lm, parts, should_continue=lambda: scoring.pending)
            if going:
                scored = scoring.trajectories()
            else:  # cut texts, from which no update learns: to score them would cost, and delay the stop
                scored = [episode.scored(Score(reward=math.nan)) for episode in episodes]
        share = _Share(
            on_policy=scored[:number],
            off_policy=scored[number:],
            tokens=tokens,
            stopped=not going,
            prefetched=bool(parts),
            drawn=self.sources.take_drawn(),
            failed=failed,
        )
        return share, parts, answers

    def _own(self, chosen_P: np.ndarray, items: Sequence[Item], indices: Sequence[int]) -> tuple[list[Item], list[int]]:
        """This process's share of the chosen items, and their stream indices."""
        rows = np.flatnonzero(chosen_P).tolist()
        mine = [rows[number] for number in self.ranks.share(len(rows))]
        return [items[row] for row in mine], [indices[row] for row in mine]

    def _coins(self, update: int, prompts: int) -> np.ndarray:
        """[P] in [0, 1): a prompt is on-policy where this is below lambda; one coin for all of a batch."""
        coins_P = uniforms(self.seed, "student_fraction", update, prompts)
        if self.sampling.mixture == "batch":
            coins_P[:] = coins_P[0]
        return coins_P


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one process brings to an update."""

    on_policy: list[Trajectory]
    off_policy: list[Trajectory]
    tokens: int
    stopped: bool
    prefetched: bool
    """Whether it has micro-batches of these texts already."""
    drawn: dict[str, list[int]]
    """Texts of the teacher that the others do not know."""
    failed: int
    """Texts that servers failed to sample now."""

    def with_texts(self, change: Callable[[Sequence[Trajectory]], list[Trajectory]]) -> _Share:
        return dataclasses.replace(self, on_policy=change(self.on_policy), off_policy=change(self.off_policy))


def _sampled_rows(shares: Sequence[_Share], rank: int) -> list[int]:
    """The rows of the rollout that this rank has sampled."""
    number = sum(len(one.on_policy) for one in shares)
    first = sum(len(one.on_policy) for one in shares[:rank])
    first_off_policy = number + sum(len(one.off_policy) for one in shares[:rank])
    own = shares[rank]
    return [
        *range(first, first + len(own.on_policy)),
        *range(first_off_policy, first_off_policy + len(own.off_policy)),
    ]
