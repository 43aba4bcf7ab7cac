"""exp by exp2, against float64."""

import math

import torch

from rlgkd.ops._exp import exp, exp_


def test_it_is_exp_up_to_what_its_module_says() -> None:
    log_V = torch.linspace(-80.0, 5.0, 20001)
    exact = log_V.double().exp()
    for found in (exp(log_V), exp_(log_V.clone())):
        assert found.dtype == torch.float32
        assert (((found.double() - exact).abs() / exact) <= 1e-7 * log_V.abs() + 2e-7).all()
    assert log_V[0] == -80.0  # not overwritten by the first


def test_its_ends() -> None:
    ends = torch.tensor([-torch.inf, -200.0, 0.0, torch.inf, torch.nan])
    assert exp(ends)[:4].tolist() == [0.0, 0.0, 1.0, torch.inf] and exp(ends)[4].isnan()
    assert exp(torch.tensor([-1.0], dtype=torch.float64)).item() == math.exp(-1.0)  # no less than float64
