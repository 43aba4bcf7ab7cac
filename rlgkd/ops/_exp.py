"""exp of a tensor of log-probabilities, as fast as a CPU can.

torch gives exp of float32 to MKL, whose kernels for other makers' processors are slow, and exp2 not: [256, 940] on 2
cores of an AMD EPYC takes 75 and 19 microseconds. The rounding of the product that is in between moves exp(x) by
1e-7 |x| at most, relatively: most where it is next to nothing.
"""

import math

import torch
from torch import Tensor

_LOG2_E = math.log2(math.e)


def exp(log_V: Tensor) -> Tensor:
    """Of any shape and floating dtype."""
    return (log_V * _LOG2_E).exp2_() if _by_exp2(log_V) else log_V.exp()


def exp_(log_V: Tensor) -> Tensor:
    """`exp`, which overwrites its argument."""
    return log_V.mul_(_LOG2_E).exp2_() if _by_exp2(log_V) else log_V.exp_()


def _by_exp2(log_V: Tensor) -> bool:
    return log_V.device.type == "cpu" and log_V.dtype == torch.float32
