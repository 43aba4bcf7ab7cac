"""exp of log-probabilities, in the fastest way on a CPU.

torch computes exp of float32 with MKL, which is slow on processors that are not Intel's, but exp2 with its own kernel:
[256, 940] on 2 cores of an AMD EPYC takes 75 and 19 microseconds. Rounding the product x log2(e) changes exp(x) by a
relative error of at most 1e-7 |x|, which is largest where exp(x) is negligible.
"""

import math

import torch
from torch import Tensor

_LOG2_E = math.log2(math.e)


def exp(log_V: Tensor) -> Tensor:
    """Exponential of a tensor of any shape and floating dtype."""
    return (log_V * _LOG2_E).exp2_() if _exp2_is_faster(log_V) else log_V.exp()


def exp_(log_V: Tensor) -> Tensor:
    """Exponential that overwrites its argument."""
    return log_V.mul_(_LOG2_E).exp2_() if _exp2_is_faster(log_V) else log_V.exp_()


def _exp2_is_faster(log_V: Tensor) -> bool:
    return log_V.device.type == "cpu" and log_V.dtype == torch.float32
