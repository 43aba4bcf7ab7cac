"""Schedules: where they begin and end, what a target does to alpha, and the refusals."""

import math
import pickle
from typing import get_args

import pytest

from rlgkd.errors import SettingError
from rlgkd.ops.schedule import Schedule, Shape, steered


@pytest.mark.parametrize("shape", get_args(Shape))
def test_every_shape_runs_from_start_to_end_without_turning(shape: str) -> None:
    schedule = pickle.loads(pickle.dumps(Schedule(0.9, 0.1, shape)))
    values = [schedule(1 - n / 10) for n in range(11)]
    assert values[0] == pytest.approx(0.9) and values[-1] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)


def test_halfway_each_shape_is_at_its_mean() -> None:
    """A line and a cosine at the arithmetic mean of their ends, an exponential at the geometric one."""
    assert [Schedule(0.9, 0.1, shape)(0.5) for shape in get_args(Shape)] == pytest.approx([0.5, 0.5, 0.3])


def test_an_exponential_to_zero_and_an_unknown_shape_are_refused() -> None:
    with pytest.raises(SettingError, match="above 0"):
        Schedule(0.5, 0.0, "exponential")
    with pytest.raises(SettingError, match="did you mean 'cosine'"):
        Schedule(0.5, 0.1, "cosin")


def test_a_steered_alpha_rises_while_the_divergence_is_above_its_target():
    """And stays where the target is met."""
    assert steered(0.3, divergence=0.2, target=0.2, rate=0.1) == pytest.approx(0.3)
    above, far = (steered(0.3, divergence=d, target=0.2, rate=0.1) for d in (0.25, 99.0))
    assert 0.3 < above < far < 0.33
    odds = math.log(far / (1 - far)) - math.log(0.3 / 0.7)
    assert odds == pytest.approx(0.1)  # never more than the rate
    assert steered(0.3, divergence=0.0, target=0.2, rate=0.1) < 0.3
    assert steered(1e-9, 0.0, 1.0, 5.0) > 0 and steered(1 - 1e-9, 9.0, 1.0, 5.0) < 1
