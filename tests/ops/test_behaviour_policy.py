"""Distributions that student and teacher make together: proper, right at their ends, and those of the procedures."""

import pytest
import torch

from rlgkd.errors import SettingError
from rlgkd.ops import behaviour_policy

TEACHER = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
STUDENT = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


@pytest.mark.parametrize("name", behaviour_policy.BEHAVIOURS)
def test_a_behaviour_is_a_distribution_in_every_precision_and_forbids_what_both_forbid(name):
    generator = torch.Generator().manual_seed(0)
    teacher, student = (5 * torch.randn(3, 9, generator=generator) for _ in range(2))
    teacher[:, 4] = student[:, 4] = float("-inf")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        p = behaviour_policy.get(name)(teacher.to(dtype), student.to(dtype)).exp()
        torch.testing.assert_close(p.sum(-1), torch.ones(3, dtype=p.dtype))
        assert (p[:, 4] == 0).all()


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({"name": "teacher_mixed", "teacher_share": 0.0}, STUDENT),
        ({"name": "teacher_mixed", "teacher_share": 1.0}, TEACHER),
        ({"name": "interleaved", "kept_top_k": 4}, STUDENT),
    ],
)
def test_at_its_ends_one_model_is_alone(settings, alone):
    torch.testing.assert_close(behaviour_policy.get(**settings)(TEACHER, STUDENT), alone)


def test_interleaved_is_the_distribution_of_proposing_and_drawing_anew():
    teacher, student, kept = TEACHER.exp().tolist(), STUDENT.exp().tolist(), {0, 1}
    drawn = [0.0] * 4
    for proposed, p in enumerate(student):
        for token in range(4):
            drawn[token] += p * (float(token == proposed) if proposed in kept else teacher[token])
    assert behaviour_policy.interleaved(TEACHER, STUDENT, kept_top_k=2).exp().tolist() == pytest.approx(drawn)


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("teacher_mixed", {"teacher_share": 1.5}, "teacher_share"),
        ("teacher_mixed", {"kept_top_k": 3}, "kept_top_k"),
        ("interleaved", {"kept_top_k": 0}, "kept_top_k"),
        ("interleave", {}, "behaviour"),
    ],
)
def test_a_setting_that_does_not_work_is_refused_by_its_name(name, settings, field):
    with pytest.raises(SettingError) as error:
        behaviour_policy.get(name, **settings)
    assert error.value.field == field
