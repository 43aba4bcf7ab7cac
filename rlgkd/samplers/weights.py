"""Keeps the servers' weights those of the student, and does not take their word for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgkd.errors import SamplerError
from rlgkd.lm.model import LanguageModel
from rlgkd.samplers.canary import (
    CLEAR,
    EXACT,
    PERTURBATIONS,
    SIXTEEN_BITS,
    Canary,
    difference,
    perturbed,
    weights_of,
)
from rlgkd.samplers.transfer import Transfer
from rlgkd.vllm_server import VllmServer


class ServedWeights:
    """The student's weights on its servers."""

    def __init__(
        self, student: LanguageModel, servers: Sequence[VllmServer], transfer: Transfer, *, longest: int
    ) -> None:
        """Take who gets the weights and how; nothing is sent yet. A text has at most `longest` tokens."""
        self.student, self.servers, self.transfer = student, servers, transfer
        self.canary = Canary(student, longest)
        self.tolerance: float | None = None
        """Nats a token within which a server agrees; None before it is known whether a side has 16 bits."""
        self._version = 0

    def push(self) -> None:
        """Bring the weights as they are now to the servers, and check that they sample with them.

        The first time it is also checked that they follow weights that move.

        Raises: ModelError or SamplerError, after which what the servers sample with is not known.
        """
        if self.tolerance is None:
            self._send()
            found = self._differences()
            exact = float(np.max([scored for scored, _ in found])) <= EXACT
            self.tolerance = EXACT if exact else SIXTEEN_BITS
            self._check_agreement(found, "before any training")
            self._check_following()  # which leaves perturbed weights on the servers
        self._send()
        self._check_agreement(self._differences(), "after the weights were sent")

    def _send(self) -> None:
        self._version += 1
        self.transfer.push(weights_of(self.student), str(self._version))

    def _differences(self) -> list[tuple[float, float]]:
        """For each server, the mean difference in nats a token: of the fixed text, and of what it samples after it."""
        ours_T = self.canary.of_student()
        return [
            (difference(ours_T, self.canary.of_server(server)), self.canary.sampled_difference(server))
            for server in self.servers
        ]

    def _check_agreement(self, differences: Sequence[tuple[float, float]], when: str) -> None:
        """Raise SamplerError if a server samples with other weights than the student's."""
        assert self.tolerance is not None
        for server, both in zip(self.servers, differences, strict=True):
            found = float(np.max(both))
            if not found <= self.tolerance:  # NaN is not
                raise SamplerError(
                    "sampler",
                    server.name,
                    f"it samples with other weights than the student's: {when}, the log-probabilities of a fixed text "
                    f"differ by {found:.3g} nats a token, and up to {self.tolerance:g} is rounding; is it of the "
                    "student's model, and does it run with --logprobs-mode processed_logprobs?",
                )

    def _check_following(self) -> None:
        """Raise SamplerError if a server does not follow weights that are perturbed in every tensor."""
        assert self.tolerance is not None
        before_T = self.canary.of_student()
        for scale in PERTURBATIONS:
            with perturbed(self.student, scale):
                moved = difference(self.canary.of_student(), before_T)
                if moved < CLEAR * self.tolerance and scale != PERTURBATIONS[-1]:
                    continue
                self._send()
                found = self._differences()
                break
        allowed = EXACT if self.tolerance == EXACT else max(self.tolerance, moved / CLEAR)
        for server, both in zip(self.servers, found, strict=True):
            off = float(np.max(both))
            if not off <= allowed:
                raise SamplerError(
                    "sampler",
                    server.name,
                    f"it does not follow all weights: weights that are moved in every tensor move the student's "
                    f"log-probabilities of a fixed text by {moved:.3g} nats a token, and its own are {off:.3g} off "
                    "them. On some CPUs a server leaves the head of tied embeddings as it was: serve a folder of "
                    "`python -m rlgkd.samplers.untied`",
                )
