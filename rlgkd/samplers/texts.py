"""Episodes whose turns servers complete: what `rlgkd.rollout.sample_episodes` is for a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlgkd.dialogue import Dialogue, end_ids_of, ending_with, stop_strings
from rlgkd.lm.generate import Completion, OnStep
from rlgkd.lm.model import LanguageModel
from rlgkd.rollout import Row, encode_within
from rlgkd.samplers.served import ServedSampler
from rlgkd.samplers.vllm import Ends, Wanted, seed_of
from rlgkd.types import Episode, Item, Source, Task


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Episodes of items, the samples of each item together, and how many the servers failed to give."""

    episodes: Sequence[Episode]
    indices: Sequence[int]
    """The index of each episode's item."""
    failed: int = 0
    """Texts, whole groups of an item."""


class PendingTexts:
    """Texts whose first turns are on their way.

    A sample is a function of (seed, item's key, its stream index, sample number), the weights and the server's kernels:
    a request has the samples of one prompt, and a seed of its own.
    """

    def __init__(
        self,
        sampler: ServedSampler,
        lm: LanguageModel,
        task: Task,
        items: Sequence[Item],
        *,
        group: int,
        seed: int,
        stream_indices: Sequence[int],
    ) -> None:
        """Ask for the first turns, `group` of each item.

        Raises: DataError if prompt and limit together exceed the model's context.
        """
        self._sampler, self._items, self._group = sampler, items, group
        self._end_ids = end_ids_of(task, lm.end_ids)
        self._task = ending_with(task, lm.end_ids)
        self._stops = stop_strings(task)
        self._streams = [(seed, f"{index}/{item.key}") for index, item in zip(stream_indices, items, strict=True)]
        self._prompts = [encode_within(lm, self._task, item) for item in items]
        wanted = [
            Wanted(prompt=prompt, number=group, limit=task.max_new_tokens, seed=seed_of(*stream))
            for prompt, stream in zip(self._prompts, self._streams, strict=True)
        ]
        self._submission = sampler.submit(wanted, self._ends)

    def finish(self, on_step: OnStep) -> Texts:
        """Wait for the texts, with their further turns if the task replies.

        Args:
            on_step: Called as sampling in this process would: with the number of texts that have an n-th token, for
                each n. False stops before the next turn.

        Raises: SamplerError if the servers have failed for too many texts so far.
        """
        group, going = self._group, True
        failures: dict[int, Exception] = {}
        rows: dict[int, list[Row]] = {}
        turns: list[Completion] = []
        for index, found in enumerate(self._submission.result()):
            dialogues = [Dialogue(self._task, self._items[index], end_ids=self._end_ids) for _ in range(group)]
            rows[index] = [Row(self._prompts[index], dialogue, g) for g, dialogue in enumerate(dialogues)]
            self._take(index, rows, rows[index], found, turns, failures)
        going = count_steps([len(turn.ids) for turn in turns], on_step)
        while going and (open_rows := self._open_rows(rows)):
            wanted = [
                Wanted(
                    prompt=row.tokens,
                    number=1,
                    limit=row.dialogue.room,
                    seed=seed_of(*self._streams[index], row.sample, row.generated),
                )
                for index, row in open_rows
            ]
            turns = []
            answers = self._sampler.submit(wanted, self._ends).result()
            for (index, row), found in zip(open_rows, answers, strict=True):
                if index in rows:
                    self._take(index, rows, [row], found, turns, failures)
            going = count_steps([len(turn.ids) for turn in turns], on_step)
        self._sampler.count(list(failures.values()), len(failures) * group, len(self._items) * group)
        return Texts(
            episodes=[row.episode(Source.STUDENT) for some in rows.values() for row in some],
            indices=[index for index, some in rows.items() for _ in some],
            failed=len(failures) * group,
        )

    def cancel(self) -> None:
        """Abandon what is pending."""
        self._submission.cancel()

    @property
    def _ends(self) -> Ends:
        return Ends(ids=self._end_ids, strings=self._stops.strings if self._stops else ())

    def _take(
        self,
        index: int,
        rows: dict[int, list[Row]],
        some: Sequence[Row],
        found: list[Completion] | Exception,
        turns: list[Completion],
        failures: dict[int, Exception],
    ) -> None:
        """Let rows of an item take their turns, or leave the whole item out if they are not there, or not whole."""
        try:
            if isinstance(found, Exception):
                raise found
            whole = [self._whole(row, completion) for row, completion in zip(some, found, strict=True)]
        except Exception as error:
            failures[index] = error
            del rows[index]
            return
        for row, completion in zip(some, whole, strict=True):
            row.take(completion)
        turns += whole

    def _whole(self, row: Row, completion: Completion) -> Completion:
        """A completion up to the token that completes a stop string.

        Raises: ValueError for one that ends before anything has ended it.
        """
        ids = completion.ids
        if self._stops is not None:
            ids = list(self._stops.truncate(ids))
        stopped = self._stops is not None and self._stops.should_stop(ids)
        if not stopped and ids[-1] not in self._end_ids and len(ids) < row.dialogue.room:
            raise ValueError(f"{self._sampler.name}: it stopped after {len(ids)} tokens, without a stop string")
        return Completion(ids, completion.logp[: len(ids)], completion.entropy[: len(ids)])

    def _open_rows(self, rows: dict[int, list[Row]]) -> list[tuple[int, Row]]:
        return [(index, row) for index, some in rows.items() for row in some if row.dialogue.stop is None]


def count_steps(lengths: Sequence[int], on_step: OnStep) -> bool:
    """Report the tokens of completions as if they had been decoded in lockstep; returns whether to go on."""
    return all(on_step(sum(length > n for length in lengths)) for n in range(max(lengths, default=0)))
