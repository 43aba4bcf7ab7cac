"""Where student and teacher agree at the actions of an update: collected while its loss reads both, and summed up.

Nothing is sampled and no gradient is formed: training is the same to the bit with it and without. The columns are named
in docs/runs.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rlgkd.agents.micro_batch import MicroBatch
from rlgkd.devices import to_device
from rlgkd.lm.fused_loss import TeacherAt
from rlgkd.ops.agreement import agreement
from rlgkd.ops.top_k_bucket import KnownTokens
from rlgkd.ranks import Ranks
from rlgkd.types import ON_POLICY, Trajectory

PREFIX = "agreement/"
"""How the columns in the log, and the records of a loss, begin."""
THIRDS = ("first", "middle", "last")
Values = np.ndarray


class Agreement:
    """The measurement of one update."""

    def __init__(self, end_ids: Iterable[int]) -> None:
        self.end_id_E = torch.tensor(sorted(end_ids), device="cpu")
        self._parts: list[tuple[MicroBatch, dict[str, Tensor]]] = []

    def begin(self) -> None:
        """Forget an earlier pass over the same texts."""
        self._parts = []

    def records(self, teacher: TeacherAt, student_NV: Tensor, token_N: Tensor) -> dict[str, Tensor]:
        """What a loss is to record at these actions; nothing of a teacher with other tokens."""
        if not isinstance(teacher, Tensor) and type(teacher) is not KnownTokens:
            return {}
        found = agreement(teacher, student_NV.detach(), token_N, to_device(self.end_id_E, student_NV.device))
        return {PREFIX + name: values_N for name, values_N in found.items()}

    def keep(self, part: MicroBatch, records: Mapping[str, Tensor]) -> None:
        """Take what the loss of a micro-batch recorded."""
        own = {name: values_N for name, values_N in records.items() if name.startswith(PREFIX)}
        if own:
            self._parts.append((part, own))

    def metrics(
        self, trajectories: Sequence[Trajectory], failed_B: Tensor, *, group_size: int, ranks: Ranks
    ) -> dict[str, float]:
        """What to log, by column; empty if nothing was measured. All ranks have to call it.

        Args:
            trajectories: Those of the update, the student's first, a prompt's samples next to each other.
            failed_B: bool [B]: texts of which the teacher has said nothing.
            group_size: Samples of each prompt.
            ranks: The processes that share the texts.
        """
        own_names = {name for _, own in self._parts for name in own}
        names = sorted(set[str]().union(*ranks.gather(lambda: own_names)))
        if not names:
            return {}
        shape = (len(names), len(trajectories), max(t.length for t in trajectories))
        values_KBL = torch.zeros(shape, dtype=torch.float64, device="cpu")
        for part, own in self._parts:
            values_KN = torch.stack([own[name] for name in names]).cpu()
            for values_BL, values_N in zip(values_KBL, values_KN, strict=True):
                part.write(values_BL, values_N)
        values_KBL = ranks.sum(values_KBL)
        values = {name.removeprefix(PREFIX): of.numpy() for name, of in zip(names, values_KBL, strict=True)}
        lengths_B = np.array([0 if failed else t.length for t, failed in zip(trajectories, failed_B, strict=True)])
        better_B = rewarded_above_others(trajectories, group_size)
        return {PREFIX + name: value for name, value in summed_up(values, lengths_B, better_B).items()}


def summed_up(values: Mapping[str, Values], lengths_B: Values, better_B: Values) -> dict[str, float]:
    """Means over actions, and over parts of the texts, of what `agreement` gives; what is known of none is left out.

    Args:
        values: [B, L] each.
        lengths_B: Actions of each text; 0 for one that does not count.
        better_B: +1 for texts that earned more than their prompt's others, -1 for less, 0 for neither.
    """
    number_L = np.arange(next(iter(values.values())).shape[1])
    mask_BL = number_L < lengths_B[:, None]
    third_BL = 3 * number_L // np.maximum(lengths_B, 1)[:, None]
    last_BL = number_L == lengths_B[:, None] - 1
    gap_BL, entropy_BL = values["gap"], values.get("teacher_entropy")
    chosen = {
        "top20_shared": (values.get("shared"), mask_BL),
        "top20_teacher_mass": (values.get("teacher_mass"), mask_BL),
        "top20_student_mass": (values.get("student_mass"), mask_BL),
        **{f"gap_{name}_third": (gap_BL, mask_BL & (third_BL == third)) for third, name in enumerate(THIRDS)},
        "positive_good": (gap_BL > 0, mask_BL & (better_B[:, None] > 0)),
        "positive_bad": (gap_BL > 0, mask_BL & (better_B[:, None] < 0)),
        "end_student": (values["student_end"], last_BL),
        "end_teacher": (values.get("teacher_end"), last_BL),
        "teacher_entropy": (entropy_BL, mask_BL),
        "teacher_entropy_last_third": (entropy_BL, mask_BL & (third_BL == 2)),
    }
    found = {
        name: float(values_BL[where_BL].mean())
        for name, (values_BL, where_BL) in chosen.items()
        if values_BL is not None and where_BL.any()
    }
    if mask_BL.any():
        found["gap_p99"] = float(np.quantile(np.abs(gap_BL[mask_BL]), 0.99))
    return found


def rewarded_above_others(trajectories: Sequence[Trajectory], group_size: int) -> Values:
    """[B]: +1 for a text of the student that earned more than the mean of its prompt's samples, -1 for less, else 0.

    Where a prompt has one sample, the mean is that of all the student's texts.
    """
    rewards = np.array([t.score.reward if t.source in ON_POLICY else np.nan for t in trajectories])
    own = rewards[: sum(t.source in ON_POLICY for t in trajectories)]
    groups = own.reshape(-1, group_size if group_size > 1 else max(1, len(own)))
    known = np.isfinite(groups)
    sums = np.where(known, groups, 0.0).sum(axis=1, keepdims=True)
    means = sums / np.maximum(known.sum(axis=1, keepdims=True), 1)
    difference = np.where(known, groups - means, 0.0)
    equal = np.abs(difference) <= 1e-9 * np.maximum(1.0, np.abs(means))  # a mean of equal numbers is rounded
    better = np.zeros(len(trajectories))
    better[: len(own)] = np.where(equal, 0.0, np.sign(difference)).ravel()
    return better
