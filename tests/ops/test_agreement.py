"""Where student and teacher agree, against a slow loop in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from rlgkd.ops.agreement import TOP, agreement
from rlgkd.ops.top_k_bucket import KnownTokens

ENDS = torch.tensor([3, 5])


def logits(vocabulary: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(seed))


def slow(teacher: list[float], student: list[float], token: int) -> dict[str, float]:
    def softmax(values):
        whole = sum(math.exp(v) for v in values)
        return [math.exp(v) / whole for v in values]

    p_t, p_s = softmax(teacher), softmax(student)
    top_t, top_s = ({*sorted(range(len(p)), key=lambda v, p=p: -p[v])[:TOP]} for p in (p_t, p_s))
    shared = top_t & top_s
    return {
        "shared": len(shared) / len(top_t),
        "teacher_mass": sum(p_t[v] for v in shared),
        "student_mass": sum(p_s[v] for v in shared),
        "gap": math.log(p_t[token]) - math.log(p_s[token]),
        "student_end": sum(p_s[v] for v in ENDS.tolist()),
        "teacher_end": sum(p_t[v] for v in ENDS.tolist()),
        "teacher_entropy": -sum(p * math.log(p) for p in p_t),
    }


@pytest.mark.parametrize("vocabulary", [7, 60])
def test_it_is_what_a_loop_over_tokens_counts(vocabulary):
    teacher, student, token = logits(vocabulary, 0), logits(vocabulary, 1), torch.tensor([0, 1, 2, 3, 4, 5])
    found = agreement(teacher, student, token, ENDS)
    for row in range(6):
        expected = slow(teacher[row].tolist(), student[row].tolist(), int(token[row]))
        assert {name: values[row].item() for name, values in found.items()} == pytest.approx(expected, abs=1e-5)
    if vocabulary > TOP:
        assert 0 < found["shared"].mean() < 1  # else the comparison above would show little


def test_of_a_teacher_known_by_its_top_tokens_the_same_is_found_but_for_what_is_not_known():
    teacher, student, token = logits(60, 0), logits(60, 1), torch.tensor([0, 1, 2, 3, 4, 5])
    logp = teacher.log_softmax(-1)
    top = logp.topk(32, dim=-1)
    known = KnownTokens(top.values, top.indices, torch.zeros(6), logp.gather(1, token[:, None])[:, 0])
    whole, part = agreement(teacher, student, token, ENDS), agreement(known, student, token, ENDS)
    assert whole.keys() - part.keys() == {"teacher_end", "teacher_entropy"}
    for name, values in part.items():
        torch.testing.assert_close(values, whole[name])


def test_of_a_teacher_known_by_the_written_token_alone_the_log_ratio_is_known():
    student, token = logits(60, 1), torch.tensor([0, 1, 2, 3, 4, 5])
    nothing = KnownTokens(torch.zeros(6, 0), torch.zeros(6, 0, dtype=torch.int64), torch.zeros(6), torch.full((6,), -2))
    found = agreement(nothing, student, token, ENDS)
    assert found.keys() == {"gap", "student_end"}
    torch.testing.assert_close(found["gap"], -2 - student.log_softmax(-1).gather(1, token[:, None])[:, 0])


def test_filled_places_of_a_known_teacher_are_no_tokens():
    student = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    known = KnownTokens(
        torch.tensor([[math.log(0.9), -math.inf]]), torch.tensor([[0, 0]]), torch.zeros(1), torch.tensor([-1.0])
    )
    found = agreement(known, student, torch.tensor([1]), torch.tensor([3]))
    assert found["shared"].item() == 1.0
    assert found["teacher_mass"].item() == pytest.approx(0.9)
    assert found["student_mass"].item() == pytest.approx(student.softmax(-1)[0, 0].item())


def test_tokens_that_are_masked_in_both_make_no_nan():
    teacher, student = logits(30, 0), logits(30, 1)
    teacher[:, 20:], student[:, 20:] = -math.inf, -math.inf
    for values in agreement(teacher, student, torch.zeros(6, dtype=torch.int64), ENDS).values():
        assert values.isfinite().all()
