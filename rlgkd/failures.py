"""Counts the samples that failed, at a reward or a served teacher, and decides when there are too many of them."""

from __future__ import annotations

MIN_SAMPLES = 200
"""Samples after which a share of failures counts."""
MIN_SAMPLES_ALL_FAILED = 50
"""Samples after which what has failed for every one of them stops the run."""


class FailureCount:
    """Samples scored, and how many of them failed."""

    def __init__(self) -> None:
        self.scored = 0
        self.failed = 0
        self._worst_batch = (0, 0)
        """Failed samples and all samples of the batch with the most failures."""

    def add(self, failed: int, scored: int) -> None:
        """Count one batch."""
        self.scored += scored
        self.failed += failed
        self._worst_batch = max(self._worst_batch, (failed, scored))

    def too_many(self, max_failed: float) -> bool:
        """Whether more than the share `max_failed` have failed.

        The batch with the most failures does not count if there are others: a server that was away for a moment stops
        nothing.
        """
        if self.failed == self.scored >= MIN_SAMPLES_ALL_FAILED:
            return max_failed < 1
        failed, scored = self._worst_batch
        if scored == self.scored:  # the only batch so far
            failed, scored = 0, 0
        counted = self.scored - scored
        return counted >= MIN_SAMPLES and self.failed - failed > max_failed * counted
