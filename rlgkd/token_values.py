"""Entropy and divergence to a teacher at each token of texts, without a gradient: what an evaluation measures.

One of each kind of teacher is read here in its own way: a model by its states, one with other tokens by spans or a map,
one outside of the process by what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlgkd.lm.fused_loss import TeacherAt, TeacherOutputs, fused_sum
from rlgkd.lm.mixture import ModelMixture, Scorer
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.own_format import as_read_by
from rlgkd.ops import divergence, policy_loss
from rlgkd.ops.byte_spans import KnownSpans
from rlgkd.ops.top_k_bucket import KnownTokens
from rlgkd.ops.vocabulary_map import MappedTokens
from rlgkd.teachers import AlignedTeacher, RoutedTeachers, Teacher, collate
from rlgkd.types import Batch, Episode


@torch.inference_mode()
def token_values(
    policy: LanguageModel,
    teacher: Teacher | None,
    trajectories: Sequence[Episode],
    *,
    entropy: bool,
    forward_kl: bool = False,
) -> dict[str, list[np.ndarray]]:
    """Return, per completion and token, the entropy (if asked for) and, given a teacher, KL(policy || teacher).

    With `forward_kl` KL(teacher || policy) too, wherever the teacher gives a distribution.
    """
    batch = _batch_of(policy, trajectories)
    lengths = [t.length for t in trajectories]
    outputs: TeacherOutputs | None = None
    failed: list[int] = []
    token_N = policy.actions(batch)
    if isinstance(teacher, LanguageModel | ModelMixture):
        read = batch if policy.format is teacher.format else _batch_of(teacher, trajectories)
        outputs = (teacher, teacher.states(read))
        states_NH = policy.states(batch)
    elif isinstance(teacher, AlignedTeacher):
        aligned = teacher.read(trajectories)
        read = Batch.collate([text.episode for text in aligned], pad=teacher.lm.pad, device=teacher.lm.device)
        logp_N = batch.logp_BT[batch.action_index_N]
        outputs = teacher.outputs(aligned, teacher.lm.states(read), read, logp_N)
        states_NH = policy.states(batch)
    else:
        assert not isinstance(teacher, RoutedTeachers), "each batch has one"
        # Asked before the policy's own pass, so that a server works on its answers meanwhile.
        answers = [] if teacher is None else teacher.submit(trajectories)
        states_NH = policy.states(batch)
        if teacher is not None:
            known = [None if answer.exception() else answer.result() for answer in answers]
            teacher.resolve()
            outputs = collate(known, lengths, policy.device)
            failed = [row for row, text in enumerate(known) if text is None]

    def record(
        logits_NV: torch.Tensor, teacher_n: TeacherAt, chunk: slice
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        records = {"entropy": policy_loss.entropy(logits_NV)} if entropy else {}
        if teacher_n is None:
            return logits_NV.new_zeros(()), records
        if isinstance(teacher_n, KnownSpans):  # no distribution, but log-ratios of texts that the policy has sampled
            written_N = policy_loss.log_probability(logits_NV, token_N[chunk]) + teacher_n.other_logp_N
            records["reverse_kl"] = (written_N - teacher_n.token_logp_N) / teacher_n.tokens_N
            return logits_NV.new_zeros(()), records
        if isinstance(teacher_n, MappedTokens | KnownTokens):
            pair = teacher_n.with_bucket(logits_NV)
        else:
            pair = teacher_n, logits_NV
        records["reverse_kl"] = divergence.reverse_kl(*pair)
        if forward_kl:
            records["forward_kl"] = divergence.forward_kl(*pair)
        if isinstance(teacher_n, MappedTokens):
            records |= {name: torch.where(teacher_n.known_n, records[name], 0.0) for name in records if "kl" in name}
        return logits_NV.new_zeros(()), records

    _, records = fused_sum(policy, states_NH, record, outputs)
    if failed:
        known_N = np.repeat([row not in failed for row in range(len(lengths))], lengths)
        unknown_N = torch.from_numpy(~known_N).to(policy.device)
        records |= {
            name: found.masked_fill(unknown_N, torch.nan) for name, found in records.items() if name != "entropy"
        }
    return {name: [row.cpu().double().numpy() for row in values.split(lengths)] for name, values in records.items()}


def _batch_of(lm: Scorer, episodes: Sequence[Episode]) -> Batch:
    """The episodes as the model reads them, on its device."""
    return Batch.collate(as_read_by(lm, episodes), pad=lm.pad, device=lm.device)
