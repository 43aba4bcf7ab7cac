"""Gaps: values by hand, bounds, and the limit of the powers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlgkd.errors import SettingError
from rlgkd.ops import gap

logp = st.floats(-60.0, 0.0)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("log", {}, math.log(0.5 / 0.2)),
        ("clip", {"gap_bound": 0.25}, 0.25),
        ("power", {"gap_exponent": 1.0}, 0.3),
        ("power", {"gap_exponent": 2.0}, (0.25 - 0.04) / 2),
        ("sigmoid", {"gap_sharpness": 1.0}, 0.5 / 0.7),
    ],
)
def test_values_by_hand(name: str, settings: dict[str, float], expected: float) -> None:
    """Of a token with p_T = .5 and p_S = .2."""
    found = gap.get(name, **settings)(torch.tensor(0.5).log(), torch.tensor(0.2).log())
    assert found.item() == pytest.approx(expected, rel=1e-5)


@given(logp, logp)
def test_a_gap_has_the_sign_of_the_log_ratio_and_its_bound(teacher: float, student: float) -> None:
    p, q = (torch.tensor(value, dtype=torch.float64) for value in (teacher, student))
    for name, bound in (("clip", 5.0), ("power", 1.0)):
        found = gap.get(name)(p, q).item()
        assert abs(found) <= bound and found * (teacher - student) >= 0
    assert 0 <= gap.sigmoid(p, q).item() <= 1


@given(logp, logp)
def test_the_powers_go_to_the_logarithm_as_the_exponent_goes_to_0(teacher: float, student: float) -> None:
    p, q = (torch.tensor(value, dtype=torch.float64) for value in (teacher, student))
    assert gap.power(p, q, gap_exponent=1e-6).item() == pytest.approx(teacher - student, rel=1e-4, abs=5e-3)


def test_a_probability_of_0_is_bounded_where_the_logarithm_is_not() -> None:
    never, ever = torch.tensor(-math.inf), torch.tensor(-1.0)
    assert gap.log(never, ever) == -math.inf
    assert gap.clip(never, ever).item() == -5.0
    assert gap.power(never, ever).item() == pytest.approx(-math.exp(-1))
    assert gap.sigmoid(never, ever).item() == 0.0


@pytest.mark.parametrize("name", ["clip", "power", "sigmoid"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_parameter_that_is_not_above_0_is_refused(name: str, value: float) -> None:
    field = {"clip": "gap_bound", "power": "gap_exponent", "sigmoid": "gap_sharpness"}[name]
    with pytest.raises(SettingError, match=field):
        gap.get(name, **{field: value})
