"""Reductions: each against a loop, and the invariances that a training loop relies on."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops import reduction as R

LENGTH = 7
NAMES = ("sequence_mean", "token_mean", "sequence_sum", "constant")
every_reduction = pytest.mark.parametrize("name", NAMES)


def reduce(name: str, value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return R.constant(value_BT, mask_BT, LENGTH) if name == "constant" else getattr(R, name)(value_BT, mask_BT)


def slow(name: str, value_BT: Tensor, mask_BT: Tensor) -> float:
    rows = [
        [v for v, m in zip(values, mask, strict=True) if m]
        for values, mask in zip(value_BT.tolist(), mask_BT.tolist(), strict=True)
    ]
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    if name == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    per_row = {"sequence_mean": lambda r: sum(r) / len(r), "sequence_sum": sum, "constant": lambda r: sum(r) / LENGTH}
    return sum(map(per_row[name], rows)) / len(rows)


def batch(seed: int, size_B: int = 5, size_T: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    value_BT = torch.randn(size_B, size_T, generator=generator, dtype=torch.float64)
    return value_BT, torch.rand(size_B, size_T, generator=generator) < 0.6


def test_names_lists_every_reduction() -> None:
    assert R.names() == tuple(sorted(NAMES))


@every_reduction
@given(seed=st.integers(0, 10_000), size_B=st.integers(1, 6), size_T=st.integers(1, 6))
@settings(deadline=None)
def test_equals_the_slow_reference(name: str, seed: int, size_B: int, size_T: int) -> None:
    value_BT, mask_BT = batch(seed, size_B, size_T)
    assert reduce(name, value_BT, mask_BT).item() == pytest.approx(slow(name, value_BT, mask_BT), abs=1e-12)


@every_reduction
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 8), max_size=4))
@settings(deadline=None)
def test_the_weighted_sum_over_micro_batches_is_the_reduction_of_the_global_batch(
    name: str, seed: int, cuts: list[int]
) -> None:
    value_BT, mask_BT = batch(seed, size_B=8)
    mask_BT[3] = False
    total_sequences, total_tokens = R.totals(mask_BT.sum(-1))
    edges = sorted({0, 8, *cuts})
    total = 0.0
    for start, end in itertools.pairwise(edges):
        lengths_B = mask_BT[start:end].sum(-1)
        weights_B = R.weights(
            name,
            lengths_B,
            total_sequences=total_sequences,
            total_tokens=total_tokens,
            length=LENGTH if name == "constant" else None,
            dtype=torch.float64,
        )
        value_N = value_BT[start:end][mask_BT[start:end]]  # the flat action positions of the training code
        total += (weights_B.repeat_interleave(lengths_B) * value_N).sum().item()
    assert total == pytest.approx(reduce(name, value_BT, mask_BT).item(), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_local_denominator_gives_another_value(name: str) -> None:
    """The mutant: reduce each micro-batch by itself and average over micro-batches."""
    value_BT = torch.tensor([[1.0, 2.0, 4.0], [8.0, 0.0, 0.0], [16.0, 32.0, 0.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    wrong = (reduce(name, value_BT[:1], mask_BT[:1]) + reduce(name, value_BT[1:], mask_BT[1:])) / 2
    assert abs(wrong.item() - reduce(name, value_BT, mask_BT).item()) > 0.1


def test_the_four_reductions_of_one_batch_worked_out_by_hand() -> None:
    value_BT, mask_BT = torch.tensor([[1.0, 3.0, 99.0], [8.0, 99.0, 99.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert R.sequence_mean(value_BT, mask_BT).item() == 5.0  # (2 + 8) / 2
    assert R.token_mean(value_BT, mask_BT).item() == 4.0  # 12 / 3
    assert R.sequence_sum(value_BT, mask_BT).item() == 6.0  # (4 + 8) / 2
    assert R.constant(value_BT, mask_BT, length=4).item() == 1.5  # (1 + 2) / 2


@every_reduction
def test_padding_and_what_stands_under_it_change_neither_value_nor_gradient(name: str) -> None:
    value_BT, mask_BT = batch(3)
    padding = torch.full((5, 4), float("nan"), dtype=torch.float64)
    wide_BT = torch.cat([value_BT.masked_fill(~mask_BT, float("inf")), padding], 1).requires_grad_()
    value_BT.requires_grad_()
    narrow = reduce(name, value_BT, mask_BT)
    wide = reduce(name, wide_BT, torch.cat([mask_BT, torch.zeros(5, 4, dtype=torch.bool)], 1))
    torch.testing.assert_close(wide, narrow)
    narrow.backward()
    wide.backward()
    torch.testing.assert_close(wide_BT.grad[:, :6], value_BT.grad)
    assert torch.count_nonzero(wide_BT.grad[:, 6:]) == 0
    assert torch.count_nonzero(value_BT.grad[~mask_BT]) == 0


@every_reduction
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    value_BT, mask_BT = batch(4)
    torch.testing.assert_close(reduce(name, value_BT.flip(0), mask_BT.flip(0)), reduce(name, value_BT, mask_BT))


@every_reduction
def test_an_all_masked_row_is_not_counted(name: str) -> None:
    value_BT, mask_BT = batch(5)
    value_with = torch.cat([value_BT, torch.full((1, 6), float("nan"), dtype=torch.float64)])
    mask_with = torch.cat([mask_BT, torch.zeros(1, 6, dtype=torch.bool)])
    torch.testing.assert_close(reduce(name, value_with, mask_with), reduce(name, value_BT, mask_BT))


@every_reduction
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_a_batch_without_tokens_gives_zero_with_a_zero_gradient(name: str, shape: tuple[int, int]) -> None:
    value_BT = torch.full(shape, float("nan"), requires_grad=True)
    result = reduce(name, value_BT, torch.zeros(shape, dtype=torch.bool))
    result.backward()
    assert result.item() == 0.0 and torch.count_nonzero(value_BT.grad) == 0


def test_bfloat16_values_are_reduced_in_float32() -> None:
    value_BT = torch.full((1, 1000), 1.0, dtype=torch.bfloat16)
    result = R.sequence_sum(value_BT, torch.ones(1, 1000, dtype=torch.bool))
    assert result.dtype == torch.float32 and result.item() == 1000.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sequence_men"}, r"reduction: 'sequence_men'.*did you mean 'sequence_mean'\?"),
        ({"name": "constant"}, "length: None.*constant needs a fixed positive number of tokens"),
        ({"name": "constant", "length": 0}, "length: 0.*positive"),
        ({"name": "token_mean", "length": 9}, "length: 9.*token_mean does not take it"),
        ({"total_sequences": 1}, "total_sequences: 1.*this micro-batch alone has 2"),
        ({"total_tokens": 4}, "total_tokens: 4.*this micro-batch alone has 5"),
        ({"lengths_B": torch.tensor([True, False])}, "lengths_B: .*integer token counts"),
        ({"lengths_B": torch.tensor([2.0, 3.0])}, "lengths_B: .*integer token counts"),
    ],
)
def test_wrong_arguments_are_refused_with_their_remedy(arguments: dict, message: str) -> None:
    given_arguments = {
        "name": "sequence_mean",
        "lengths_B": torch.tensor([2, 3]),
        "total_sequences": 2,
        "total_tokens": 5,
        **arguments,
    }
    with pytest.raises(SettingError, match=message):
        R.weights(**given_arguments)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"mask_BT.shape: \(2, 4\)"):
        R.token_mean(torch.zeros(2, 3), torch.ones(2, 4))
    with pytest.raises(SettingError, match=r"mask_BT.dtype: torch.float32"):
        R.token_mean(torch.zeros(2, 3), torch.ones(2, 3))


@every_reduction
def test_a_sequence_without_tokens_has_weight_zero(name: str) -> None:
    length = LENGTH if name == "constant" else None
    lengths_B = torch.tensor([2, 0, 3])
    weights_B = R.weights(name, lengths_B, total_sequences=2, total_tokens=5, length=length)
    assert weights_B[1] == 0.0 and (weights_B[[0, 2]] > 0.0).all()
    assert not R.weights(name, torch.tensor([0, 0]), total_sequences=0, total_tokens=0, length=length).any()
