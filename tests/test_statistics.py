"""Intervals and probabilities of improvement against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rlgkd.errors import SettingError
from rlgkd.statistics import Interval, improvement, mean_interval, prompt_interval

TRIALS = 600


def table(
    rng: np.random.Generator, seeds: int, prompts: int, *, of_seeds: float, of_prompts: float, of_samples: float
) -> np.ndarray:
    """Return values around 0 whose chance has three sources with these standard deviations."""
    return (
        of_seeds * rng.standard_normal((seeds, 1))
        + of_prompts * rng.standard_normal((1, prompts))
        + of_samples * rng.standard_normal((seeds, prompts))
    )


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_prompts", "of_samples", "most"),
    [
        (3, 0.2, 0.5, 1.0, 0.97),
        (3, 1.0, 0.3, 0.3, 0.97),
        (5, 0.2, 1.0, 1.0, 0.97),
        (1, 0.0, 1.0, 1.0, 0.97),
        (3, 0.0, 0.0, 1.0, 0.99),  # three seeds cannot show that seeds do not differ, so the interval stays wide
    ],
)
def test_the_interval_covers_the_true_mean_95_times_in_100(
    seeds: int, of_seeds: float, of_prompts: float, of_samples: float, most: float
) -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(TRIALS):
        values = table(rng, seeds, 40, of_seeds=of_seeds, of_prompts=of_prompts, of_samples=of_samples)
        found = mean_interval(values, resamples=300)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / TRIALS <= most  # 93% to 98.5% of 20,000 tables; 600 have an error of 1%


def test_an_uncorrected_bootstrap_would_not_cover() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        values = table(rng, 3, 40, of_seeds=1.0, of_prompts=0.3, of_samples=0.3)
        drawn = values[rng.integers(3, size=(300, 3, 1)), rng.integers(40, size=(300, 1, 40))].mean(axis=(1, 2))
        low, high = np.quantile(drawn, [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / 300 < 0.85


def test_few_seeds_that_differ_have_the_interval_of_students_t() -> None:
    values = np.repeat(np.array([[0.0], [1.0], [5.0]]), 30, axis=1)
    found = mean_interval(values, resamples=20_000)
    half = stats.t.ppf(0.975, 2) * np.array([0.0, 1.0, 5.0]).std(ddof=1) / math.sqrt(3)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.2)


def test_a_paired_interval_is_tighter_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(1)
    hard = rng.standard_normal(100)
    ours, theirs = (hard + shift + 0.2 * rng.standard_normal((3, 100)) for shift in (0.1, 0.0))
    paired = mean_interval(ours - theirs)
    apart = [mean_interval(values) for values in (ours, theirs)]
    unpaired = math.hypot(*(estimate.high - estimate.low for estimate in apart))
    assert paired.sign == 1 and paired.high - paired.low < 0.3 * unpaired


def test_the_probability_of_improvement_of_gaussians_is_their_closed_form() -> None:
    rng = np.random.default_rng(3)
    truth = stats.norm.cdf(0.5 / math.sqrt(2))
    covered = 0
    estimates = []
    for _ in range(100):
        ours, theirs = rng.normal(0.5, 1.0, (3, 60)), rng.normal(0.0, 1.0, (3, 60))
        found = improvement(ours, theirs)
        estimates.append(found.mean)
        covered += found.low <= truth <= found.high
    assert np.mean(estimates) == pytest.approx(truth, abs=0.01)
    assert covered >= 93


def test_ties_are_half_a_win_and_ends_are_sure() -> None:
    ones, zeros = np.ones((3, 5)), np.zeros((3, 5))
    assert improvement(ones, ones).mean == 0.5
    assert improvement(ones, zeros).low == 1.0 and improvement(zeros, ones).high == 0.0
    assert improvement(ones, zeros[:1]).mean == 1.0


def test_values_that_failed_leave_their_prompt_out_and_the_same_input_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((3, 20))
    holed = np.concatenate([whole, np.full((3, 1), np.nan)], axis=1)
    assert mean_interval(holed) == mean_interval(whole) == mean_interval(whole)
    assert math.isnan(mean_interval(np.full((2, 3), np.nan)).mean)
    assert mean_interval(np.full((3, 4), 0.1)).low == pytest.approx(0.1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, math.inf)])
def test_an_interval_cut_to_its_range_stays_in_it_and_covers_as_often(low: float, high: float) -> None:
    rng = np.random.default_rng(5)
    cut = whole = narrower = 0
    for _ in range(TRIALS):  # two seeds, eight prompts, and a mean near an end
        of_prompts = rng.uniform(0.8, 1.0, (1, 8)) if high == 1 else rng.exponential(0.1, (1, 8))
        drawn = rng.random((2, 8)) < of_prompts if high == 1 else rng.exponential(of_prompts, (2, 8))
        found = mean_interval(drawn.astype(np.float64), resamples=200)
        within = found.within(low, high)
        truth = 0.9 if high == 1 else 0.1
        assert low <= within.low <= within.mean <= within.high <= high
        narrower += within != found
        whole += found.low <= truth <= found.high
        cut += within.low <= truth <= within.high
    assert cut == whole and narrower > TRIALS / 10
    assert math.isnan(mean_interval(np.full((2, 3), np.nan)).within(low, high).low)


def test_a_table_of_other_dimensions_is_refused() -> None:
    with pytest.raises(SettingError, match="seeds and prompts"):
        mean_interval(np.zeros(3))
    with pytest.raises(SettingError, match="over the prompts"):
        improvement(np.zeros((2, 3)), np.zeros((2, 4)))


def test_the_interval_of_the_probability_of_improvement_is_as_wide_as_chance_makes_it() -> None:
    rng = np.random.default_rng(0)
    truth = 0.5
    covered = 0
    widths = []
    for _ in range(150):
        hard = rng.normal(size=60)  # prompts differ, and the two are as good as each other
        ours, theirs = (hard + rng.normal(size=(3, 60)) for _ in range(2))
        found = improvement(ours, theirs)
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert covered >= 0.92 * 150 and np.mean(widths) < 0.3
    one = improvement(ours[:1], theirs[:1])
    wins = mean_interval((ours[:1] > theirs[:1]).astype(np.float64))  # one seed each: the table of wins
    assert one.high - one.low == pytest.approx(wins.high - wins.low, rel=0.05)


def test_the_interval_over_prompts_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = prompt_interval(rng.exponential(1.0, 200))
        covered += found.low <= 1.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_values_that_failed_are_left_out_and_equal_ones_have_no_width() -> None:
    assert prompt_interval(np.array([1.0, np.nan, 1.0])) == Interval(1.0, 1.0, 1.0)
    assert np.isnan(prompt_interval(np.array([np.nan])).mean)
