"""The on-policy texts of an update from servers: pushed to, asked, and with `staleness` one update ahead.

Without staleness: the weights go to the servers, then the texts are asked for and waited for. With staleness 1 an
update finds its texts waiting; the weights as they are now go to the servers, and while this update trains these sample
the texts of the next one, which are waited for, by all processes, before anything else happens.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlgkd.agents.state import TrainingState
from rlgkd.agents.text_json import to_json
from rlgkd.agents.waiting import WaitingTexts
from rlgkd.errors import SamplerError
from rlgkd.lm.generate import OnStep
from rlgkd.lm.model import LanguageModel
from rlgkd.ranks import Ranks
from rlgkd.samplers import PendingTexts, ServedSampler
from rlgkd.samplers.texts import Texts
from rlgkd.samplers.weights import ServedWeights
from rlgkd.sharding import whole
from rlgkd.types import Item, Task


class ServedTexts:
    """Where on-policy texts come from, if servers sample them."""

    def __init__(
        self,
        sampler: ServedSampler,
        weights: ServedWeights,
        student: LanguageModel,
        task: Task,
        *,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.sampler, self.weights, self.student, self.task = sampler, weights, student, task
        self.seed, self.ranks = seed, ranks
        self._ahead: tuple[int, int, Sequence[int], PendingTexts] | None = None
        """The update, the group's size and this process's items of the texts that servers sample ahead."""

    def push(self) -> None:
        """Bring the student's weights to the servers; a collective call.

        Raises: as `ServedWeights.push`; ProcessError on the other processes.
        """
        with whole(self.student):
            self.ranks.from_main(self.weights.push)

    def sample(self, items: Sequence[Item], stream_indices: Sequence[int], group: int, on_step: OnStep) -> Texts:
        """Ask for texts and wait for them; of weights as they were pushed last."""
        pending = self._asked(items, stream_indices, group)
        try:
            return pending.finish(on_step)
        except BaseException:
            pending.cancel()
            raise

    def begin_next(self, update: int, items: Sequence[Item], stream_indices: Sequence[int], group: int) -> None:
        """Let servers begin with the texts of the next update, by the weights of now; a collective call."""
        self.push()
        rows = self.ranks.share(len(items))
        pending = self._asked([items[row] for row in rows], [stream_indices[row] for row in rows], group)
        self._ahead = update, group, list(rows), pending

    def resolve_next(self, state: TrainingState) -> None:
        """Wait for the texts of the next update, if they were asked for, and put them into the state; collective.

        Raises: SamplerError as `PendingTexts.finish`, or if there are none; ProcessError on the other processes.
        """
        if self._ahead is None:
            return
        (update, group, rows, pending), self._ahead = self._ahead, None
        try:
            shares = self.ranks.gather(lambda: _as_json(pending.finish(lambda tokens: True), rows))
        except BaseException:
            pending.cancel()
            raise
        texts = tuple(text for some, _ in shares for text in some)
        failed = sum(number for _, number in shares)
        if failed and not texts:
            raise self.nothing_left(failed)
        state.waiting = WaitingTexts(update=update, group=group, failed=failed, texts=texts)

    def waiting(self, state: TrainingState, group: int) -> WaitingTexts | None:
        """What the state has for its next update; texts of another one, or other groups, are none."""
        found = state.waiting
        return found if found is not None and (found.update, found.group) == (state.updates, group) else None

    def nothing_left(self, failed: int) -> SamplerError:
        """The error of an update that has no text, since servers have failed for all."""
        return self.sampler.error(f"all {failed} texts of an update failed", "look after the server, and --resume")

    def cancel(self) -> None:
        """Abandon texts that are sampled ahead."""
        if self._ahead is not None:
            self._ahead[-1].cancel()
            self._ahead = None

    def _asked(self, items: Sequence[Item], stream_indices: Sequence[int], group: int) -> PendingTexts:
        return PendingTexts(
            self.sampler,
            self.student,
            self.task,
            items,
            group=group,
            seed=self.seed,
            stream_indices=stream_indices,
        )


def _as_json(texts: Texts, rows: Sequence[int]) -> tuple[list[dict[str, object]], int]:
    episodes = zip(texts.episodes, texts.indices, strict=True)
    return [{"prompt": rows[index], **to_json(episode)} for episode, index in episodes], texts.failed
