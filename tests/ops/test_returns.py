"""Returns against a loop and closed forms; leave-one-out against its identities."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.errors import SettingError
from rlgkd.ops import returns as R

NAN = float("nan")


def masked(function: R.Advantage, reward_PG: torch.Tensor) -> torch.Tensor:
    """The advantage, with NaN for a failed reward."""
    return function(reward_PG, ~reward_PG.isnan())


@given(
    seed=st.integers(0, 10_000),
    size_T=st.integers(0, 20),
    gamma=st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]),
)
@settings(deadline=None)
def test_discounted_returns_equal_the_slow_loop_over_a_rows_actions(seed: int, size_T: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reward_BT = torch.randn(4, size_T, generator=generator, dtype=torch.float64)
    mask_BT = torch.rand(4, size_T, generator=generator) < 0.7
    result = R.discounted_returns(reward_BT.masked_fill(~mask_BT, NAN), gamma, mask_BT)
    for b in range(4):
        actions = mask_BT[b].nonzero()[:, 0].tolist()
        expected = [0.0] * size_T
        for n, t in enumerate(actions):
            expected[t] = sum(gamma ** (m - n) * reward_BT[b, actions[m]].item() for m in range(n, len(actions)))
        assert result[b].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_constant_reward_returns_the_geometric_series() -> None:
    result = R.discounted_returns(torch.ones(1, 2000), 0.9, torch.ones(1, 2000, dtype=torch.bool))
    assert result[0, 0].item() == pytest.approx(1 / (1 - 0.9), rel=1e-5)


def test_a_horizon_of_zero_does_not_see_an_infinite_future() -> None:
    result = R.discounted_returns(torch.tensor([[1.0, math.inf]]), 0.0, torch.ones(1, 2, dtype=torch.bool))
    assert result.tolist() == [[1.0, math.inf]]


def test_tokens_of_the_environment_between_two_turns_do_not_discount() -> None:
    together = R.discounted_returns(torch.tensor([[1.0, 4.0]]), 0.5, torch.tensor([[True, True]]))
    apart = R.discounted_returns(torch.tensor([[1.0, 9, 9, 9, 4.0]]), 0.5, torch.tensor([[1, 0, 0, 0, 1]]).bool())
    assert together.tolist() == [[3.0, 4.0]]
    assert apart.tolist() == [[3.0, 0.0, 0.0, 0.0, 4.0]]


def test_returns_are_refused_a_gamma_or_a_mask_that_does_not_fit() -> None:
    ones = torch.ones(1, 2, dtype=torch.bool)
    for gamma in (-0.1, 1.1, NAN):
        with pytest.raises(SettingError, match=r"gamma: .*give a number in \[0, 1\]"):
            R.discounted_returns(torch.ones(1, 2), gamma, ones)
    with pytest.raises(SettingError, match=r"mask_BT.shape"):
        R.discounted_returns(torch.ones(1, 3), 0.5, ones)
    with pytest.raises(SettingError, match=r"mask_BT.dtype"):
        R.discounted_returns(torch.ones(1, 2), 0.5, ones.int())


@given(
    st.lists(
        st.lists(st.one_of(st.floats(-100, 100), st.just(NAN)), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
@settings(deadline=None)
def test_leave_one_out_is_the_reward_less_the_mean_of_the_other_valid_ones(rewards: list[list[float]]) -> None:
    advantage_PG = masked(R.leave_one_out, torch.tensor(rewards, dtype=torch.float64)).tolist()
    for row, advantages in zip(rewards, advantage_PG, strict=True):
        for i, (reward, advantage) in enumerate(zip(row, advantages, strict=True)):
            others = [r for j, r in enumerate(row) if j != i and not math.isnan(r)]
            expected = 0.0 if math.isnan(reward) or not others else reward - sum(others) / len(others)
            assert advantage == pytest.approx(expected, abs=1e-10)


def test_leave_one_out_is_g_over_g_minus_one_times_the_mean_baseline_and_sums_to_zero() -> None:
    reward_PG = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage_PG = masked(R.leave_one_out, reward_PG)
    torch.testing.assert_close(advantage_PG, 5 / 4 * masked(R.mean_baseline, reward_PG))
    torch.testing.assert_close(masked(R.mean_baseline, reward_PG), reward_PG - reward_PG.mean(-1, keepdim=True))
    assert advantage_PG.sum(-1).abs().max().item() < 1e-12


def test_leave_one_out_is_unbiased_and_the_mean_baseline_shrinks_the_gradient() -> None:
    """Enumerated over every group of three samples of a policy over three actions; the mean shrinks it by (G-1)/G."""
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
    (exact,) = torch.autograd.grad((logits.softmax(-1) * reward).sum(), logits)
    probability, score = logits.softmax(-1).detach(), torch.eye(3) - logits.softmax(-1).detach()
    means = {R.leave_one_out: torch.zeros(3, dtype=torch.float64), R.mean_baseline: torch.zeros(3, dtype=torch.float64)}
    for group in map(list, itertools.product(range(3), repeat=3)):
        for advantage, mean in means.items():
            mean += probability[group].prod() * (
                masked(advantage, reward[group][None])[0, :, None] * score[group]
            ).mean(0)
    torch.testing.assert_close(means[R.leave_one_out], exact)
    torch.testing.assert_close(means[R.mean_baseline], exact * 2 / 3)


def test_a_failed_grader_gets_no_advantage_and_stays_out_of_the_others_baseline() -> None:
    rewards = torch.tensor([[1.0, NAN, 3.0], [NAN, 5.0, NAN], [NAN, NAN, NAN]])
    assert masked(R.leave_one_out, rewards).tolist() == [[-2.0, 0.0, 2.0], [0.0] * 3, [0.0] * 3]
    assert masked(R.mean_baseline, rewards).tolist() == [[-1.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("name", R.ADVANTAGES)
@given(
    reward_PG=st.lists(st.lists(st.floats(-100, 100), min_size=4, max_size=4), min_size=1, max_size=5).map(
        torch.tensor
    ),
    seed=st.integers(0, 100),
)
@settings(deadline=None)
def test_the_value_of_an_invalid_reward_changes_nothing_and_its_advantage_is_zero(
    name: str, reward_PG: torch.Tensor, seed: int
) -> None:
    valid_PG = torch.rand(reward_PG.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    advantages = [
        R.ADVANTAGES[name](reward_PG.masked_fill(~valid_PG, value), valid_PG) for value in (0.0, 7.0, math.inf, NAN)
    ]
    assert all(torch.equal(advantage, advantages[0]) for advantage in advantages)
    assert torch.count_nonzero(advantages[0][~valid_PG]) == 0


@pytest.mark.parametrize("name", R.ADVANTAGES)
def test_a_mask_of_another_shape_or_dtype_and_a_valid_nan_are_refused(name: str) -> None:
    advantage = R.ADVANTAGES[name]
    with pytest.raises(SettingError, match=r"valid_PG.shape: \(2, 2\).*\(2, 3\)"):
        advantage(torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(SettingError, match=r"valid_PG.dtype: .*bool"):
        advantage(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(SettingError, match=r"reward_PG: nan.*valid_PG"):
        advantage(torch.tensor([[1.0, NAN]]), torch.ones(1, 2, dtype=torch.bool))


def test_equal_rewards_have_an_advantage_of_exactly_zero() -> None:
    for value in (0.1, 1 / 3, 1e6 + 0.1):
        assert torch.count_nonzero(masked(R.leave_one_out, torch.full((2, 7), value))) == 0


@pytest.mark.parametrize("advantage", [R.leave_one_out, R.mean_baseline])
def test_a_group_of_one_an_infinite_reward_and_a_flat_tensor_are_refused(advantage) -> None:
    with pytest.raises(SettingError, match=r"group size: 1.*2 or more samples of each prompt"):
        masked(advantage, torch.ones(3, 1))
    with pytest.raises(SettingError, match=r"reward_PG: .*clip rewards"):
        masked(advantage, torch.tensor([[1.0, -math.inf]]))
    with pytest.raises(SettingError, match=r"reward_PG.shape: \(3,\)"):
        masked(advantage, torch.ones(3))


def test_normalised_advantages_have_mean_0_and_deviation_1() -> None:
    """So a reward's scale and shift change nothing, except where its differences are near the 1e-4 in the divisor."""
    reward_PG = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group_PG, batch_PG = masked(R.group_normalised, reward_PG), masked(R.batch_normalised, reward_PG)
    torch.testing.assert_close(group_PG.std(-1), torch.ones(6, dtype=torch.float64), rtol=1e-3, atol=0)
    assert group_PG.mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(batch_PG.flatten(), (reward_PG.flatten() - reward_PG.mean()) / (reward_PG.std() + 1e-4))
    for advantage in (R.group_normalised, R.batch_normalised):
        torch.testing.assert_close(
            masked(advantage, 3 * reward_PG - 7), masked(advantage, reward_PG), rtol=1e-3, atol=0
        )
        saturated = masked(advantage, torch.tensor([[0.99998, 0.99999, 0.99999]]))
        assert saturated.abs().max() < 0.1  # a learned reward's last digits are no signal


def test_normalised_advantages_leave_out_failed_graders_and_are_zero_without_differences() -> None:
    rewards = torch.tensor([[1.0, NAN, 3.0], [0.1, 0.1, 0.1], [NAN, 5.0, NAN]])
    expected = [[-(0.5**0.5), 0.0, 0.5**0.5], [0.0] * 3, [0.0] * 3]
    torch.testing.assert_close(masked(R.group_normalised, rewards), torch.tensor(expected), rtol=1e-3, atol=1e-6)
    valid = rewards[~rewards.isnan()]
    assert torch.count_nonzero(masked(R.batch_normalised, rewards)[rewards.isnan()]) == 0
    torch.testing.assert_close(
        masked(R.batch_normalised, rewards)[~rewards.isnan()],
        (valid - valid.mean()) / valid.std(),
        rtol=1e-3,
        atol=1e-6,
    )
    with pytest.raises(SettingError, match="group size"):
        masked(R.batch_normalised, torch.tensor([[4.0]]))


def test_every_advantage_but_those_of_a_whole_batch_treats_prompts_alone() -> None:
    reward_PG = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    for name, advantage in R.ADVANTAGES.items():
        alone = torch.cat([masked(advantage, row[None]) for row in reward_PG])
        assert torch.allclose(alone, masked(advantage, reward_PG)) == (name != "batch_normalised")


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_gae_is_the_sum_of_its_definition(lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reward_BT, value_BT = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask_BT = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    result = R.gae(reward_BT, value_BT.masked_fill(~mask_BT, NAN), lam, mask_BT)
    for b in range(3):
        actions = mask_BT[b].nonzero()[:, 0].tolist()
        values = [value_BT[b, t].item() for t in actions] + [0.0]
        deltas = [reward_BT[b, t].item() + values[n + 1] - values[n] for n, t in enumerate(actions)]
        for n, t in enumerate(actions):
            expected = sum(lam**k * delta for k, delta in enumerate(deltas[n:]))
            assert result[b, t].item() == pytest.approx(expected, abs=1e-12)
            if lam == 1.0:  # the return less the value
                returns = sum(reward_BT[b, m].item() for m in actions[n:])
                assert result[b, t].item() == pytest.approx(returns - values[n], abs=1e-12)
    assert not result[~mask_BT].any()


def test_gae_refuses_actions_with_a_gap() -> None:
    mask_BT = torch.tensor([[True, False, True]])
    with pytest.raises(SettingError, match="adjacent"):
        R.gae(torch.zeros(1, 3), torch.zeros(1, 3), 0.9, mask_BT)


def test_the_overlong_penalty_is_a_ramp_over_its_buffer() -> None:
    penalty = R.overlong_penalty(torch.arange(1, 21), limit=20, buffer=8)
    assert not penalty[:12].any() and penalty[-1] == -1.0
    torch.testing.assert_close(penalty[12:].diff(), torch.full((7,), -1 / 8, dtype=torch.float64))
    for buffer in (0, 21):
        with pytest.raises(SettingError, match="overlong_buffer"):
            R.overlong_penalty(torch.tensor([1]), limit=20, buffer=buffer)
