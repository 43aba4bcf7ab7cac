"""A teacher's distribution over its own vocabulary as one over its student's: pushed through a map of the tokens.

The map sends each of the teacher's tokens to the one of the student's with which the student would begin to write the
same bytes: the token of the same bytes, or the first of several. For the student's tokens M that it reaches

    q(v) = sum_(u -> v) p_T(u)

and what it does not map, with the student's tokens that it does not reach, is one bucket: teacher and student are then
compared over M tokens and the bucket. If it reaches all of the student's tokens there is no bucket, and q is divided by
the mass that is mapped.

Not seen: where the teacher writes in two tokens what is one of the student's, its mass goes to the shorter token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VocabularyMap:
    """E pairs of tokens, each of the teacher's once at most."""

    teacher_ids_E: Tensor
    """int64, ascending."""
    student_ids_E: Tensor
    """int64: where each one's mass goes."""
    teacher_size: int
    """Tokens of the teacher's vocabulary."""
    student_size: int
    """Tokens of the student's vocabulary."""

    @cached_property
    def reached_M(self) -> Tensor:
        """int64, ascending: the student's tokens to which something goes."""
        with torch.inference_mode(False):  # kept from an evaluation, they serve in training too
            reached_M: Tensor = self.student_ids_E.unique()
        return reached_M

    @cached_property
    def unmapped_U(self) -> Tensor:
        """int64: the teacher's tokens that go nowhere."""
        with torch.inference_mode(False):
            mapped_V = torch.zeros(self.teacher_size, dtype=torch.bool, device=self.teacher_ids_E.device)
            mapped_V[self.teacher_ids_E] = True
            return (~mapped_V).nonzero()[:, 0]

    @cached_property
    def _target_E(self) -> Tensor:
        """Each pair's place among `reached_M`."""
        with torch.inference_mode(False):
            return torch.searchsorted(self.reached_M, self.student_ids_E)

    def to(self, device: torch.device) -> VocabularyMap:
        """Return it on a device."""
        if self.teacher_ids_E.device == device:
            return self
        return VocabularyMap(
            teacher_ids_E=self.teacher_ids_E.to(device),
            student_ids_E=self.student_ids_E.to(device),
            teacher_size=self.teacher_size,
            student_size=self.student_size,
        )

    @torch.no_grad()
    def push(self, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Push a distribution through the map.

        Args:
            teacher_logits: [n, teacher_size].

        Returns:
            [n, M], the log-probabilities of `reached_M`, and [n], the log of the mass that is not mapped; in nats.

        Examples:
            >>> map = VocabularyMap(
            ...     teacher_ids_E=torch.tensor([0, 1, 2]), student_ids_E=torch.tensor([1, 1, 0]),
            ...     teacher_size=4, student_size=2,
            ... )
            >>> logp, unmapped = map.push(torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log())
            >>> [[round(p, 4) for p in row.exp().flatten().tolist()] for row in (logp, unmapped)]
            [[0.3, 0.3], [0.4]]
        """
        logp_nV = torch.log_softmax(teacher_logits, -1, dtype=torch.promote_types(teacher_logits.dtype, torch.float32))
        logp_nE = logp_nV[:, self.teacher_ids_E]
        target_nE = self._target_E.expand_as(logp_nE)
        # Sums of exponentials less their largest: a token that is reached by one alone keeps its value to the bit.
        largest_nM = logp_nE.new_full((len(logp_nE), len(self.reached_M)), -torch.inf)
        largest_nM = largest_nM.scatter_reduce(1, target_nE, logp_nE, "amax").clamp(min=torch.finfo(logp_nE.dtype).min)
        scaled_nE = (logp_nE - largest_nM[:, self._target_E]).exp()
        sum_nM = torch.zeros_like(largest_nM).index_add(1, self._target_E, scaled_nE)
        return largest_nM + sum_nM.log(), logp_nV[:, self.unmapped_U].logsumexp(-1)

    def with_bucket(self, logp_nM: Tensor, unmapped_n: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return teacher and student over the tokens that are reached and the bucket, if there is one.

        Args:
            logp_nM: As `push` gave it.
            unmapped_n: As `push` gave it.
            student_logits: [n, student_size], with its gradient.

        Returns:
            Two tensors [n, M + 1], or [n, M] if all of the student's tokens are reached, in nats.
        """
        student_nV = torch.log_softmax(
            student_logits, -1, dtype=torch.promote_types(student_logits.dtype, torch.float32)
        )
        if len(self.reached_M) == self.student_size:
            mapped_n1 = torch.log1p(-unmapped_n.exp())[:, None]
            return logp_nM - mapped_n1, student_nV
        rest_n1 = student_nV.index_fill(1, self.reached_M, -torch.inf).logsumexp(-1, keepdim=True)
        # A bucket of nothing would forbid the student all tokens that are not reached.
        lowest = torch.finfo(logp_nM.dtype).eps
        unmapped_n1 = unmapped_n.clamp(min=torch.tensor(lowest).log().item())[:, None]
        return torch.cat([logp_nM, unmapped_n1], -1), torch.cat([student_nV[:, self.reached_M], rest_n1], -1)


@dataclass(frozen=True)
class MappedTokens:
    """A teacher with other tokens at n actions: its distributions before the map."""

    logits_nV: Tensor
    """[n, teacher_size]; where nothing is known, those of another action."""
    known_n: Tensor
    """bool: False for an action that begins inside of one of the teacher's tokens, where it has no distribution."""
    map: VocabularyMap

    @cached_property
    def _pushed(self) -> tuple[Tensor, Tensor]:
        return self.map.push(self.logits_nV)

    @property
    def unmapped_n(self) -> Tensor:
        """[n], in 0..1: the mass that is not mapped; 0 where nothing is known."""
        return self._pushed[1].exp() * self.known_n

    def with_bucket(self, student_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher and student as `VocabularyMap.with_bucket`."""
        return self.map.with_bucket(*self._pushed, student_logits)
