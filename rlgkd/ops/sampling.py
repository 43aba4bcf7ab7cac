"""Sampling of tokens from one uniform number per row, so that a sample depends on its prompt and not on its batch.

`uniforms` is the stream of numbers of one (seed, prompt key, sample index); `sample` turns one number per row into one
token per row. Since rows do not attend to each other, a completion is then the same whatever else is in its batch.
Not here: top-k and its like (rlgkd.ops.logit_filters), greedy decoding (argmax).
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, softmax

from rlgkd.devices import widest_float
from rlgkd.errors import SettingError

_BLOCK = 256
_ONE_LEVEL_MAX = 1024
"""The largest vocabulary for which F is summed in one level: there the number of calls takes the time, not the sum."""


class Sample(NamedTuple):
    """One sampled token per row, its log-probability and the entropy of its distribution."""

    token_B: Tensor
    """[B], int64."""
    logp_B: Tensor
    """[B], log softmax(logits)[token] in nats, float32 or better."""
    entropy_B: Tensor
    """[B], the entropy of softmax(logits) in nats, with an error of about 1e-7 of the largest logit."""


def sample(logits_BV: Tensor, uniform_B: Tensor) -> Sample:
    """Inverse transform in the order of token ids: y = min {v : F(v) > u}, F(v) = sum_{w <= v} p(w).

    Never returns a token of probability 0 (a logit of -inf, or one so low that its probability underflows), whatever u
    and the rounding of F. For a large vocabulary F is summed in two levels, over blocks of 256 tokens and then within
    the selected block (in float64 where the device has it): a cumulative sum over the vocabulary loses digits in
    float32 and is slow in float64. (At [64, 49152] on one CPU core it takes 14 times as long as a softmax, this whole
    function 1.8 times.)

    Args:
        logits_BV: [B, V], any floating dtype, with the temperature applied.
        uniform_B: [B], floating point, in [0, 1].

    Raises:
        SettingError: a wrong shape or dtype, or what `check_sampled` finds.

    Source: Devroye 1986, "Non-Uniform Random Variate Generation", II.2.

    Examples:
        >>> sampled = sample(torch.tensor([[0.25, 0.75]]).log().expand(3, 2), torch.tensor([0.0, 0.2499, 0.25]))
        >>> sampled.token_B.tolist(), round(sampled.logp_B[2].exp().item(), 4), round(sampled.entropy_B[2].item(), 4)
        ([0, 0, 1], 0.75, 0.5623)
    """
    sampled = sample_unchecked(logits_BV, uniform_B)
    check_sampled(sampled.token_B, uniform_B)
    return sampled


def sample_unchecked(logits_BV: Tensor, uniform_B: Tensor) -> Sample:
    """As `sample`, but where a row cannot be sampled its token is -1, without waiting for the device to know.

    For who brings the tokens to the host anyway: `check_sampled` says there what is wrong.

    Raises:
        SettingError: a wrong shape or dtype.
    """
    if logits_BV.ndim != 2 or logits_BV.shape[1] == 0 or not logits_BV.is_floating_point():
        raise SettingError("logits_BV", (tuple(logits_BV.shape), logits_BV.dtype), "give [B, V] floating-point logits")
    if uniform_B.shape != logits_BV.shape[:1] or not uniform_B.is_floating_point():
        raise SettingError("uniform_B", (tuple(uniform_B.shape), uniform_B.dtype), "give one number in [0, 1) per row")
    logits_BV = logits_BV.detach()
    uniform_B = uniform_B.detach()
    sum_dtype = widest_float(logits_BV.device)
    dtype = torch.promote_types(logits_BV.dtype, torch.float32)
    p_BV = softmax(logits_BV, -1, dtype=dtype)
    size_V = logits_BV.shape[1]
    if size_V <= _ONE_LEVEL_MAX:
        block_BN = p_BV
    else:
        if size_V % _BLOCK:
            p_BV = pad(p_BV, (0, -size_V % _BLOCK))
        p_BNK = p_BV.unflatten(1, (-1, _BLOCK))
        block_BN = p_BNK.sum(-1)
    cumulative_BN = block_BN.cumsum(-1, dtype=sum_dtype)
    total_B1 = cumulative_BN.narrow(1, -1, 1)  # 1 except for the rounding of p
    target_B1 = uniform_B.to(sum_dtype).unsqueeze(-1) * total_B1
    valid_B1 = target_B1.clamp(min=0.0).minimum(total_B1) == target_B1  # NaN equals nothing

    n_B1 = _first_index_above(cumulative_BN, block_BN, target_B1)
    if size_V <= _ONE_LEVEL_MAX:
        token_B1 = n_B1
        p_B1 = p_BV.gather(1, n_B1)
    else:
        before_B1 = (cumulative_BN - block_BN).gather(1, n_B1)
        p_BK = p_BNK[torch.arange(len(n_B1), device=p_BV.device), n_B1[:, 0]]
        k_B1 = _first_index_above(p_BK.cumsum(-1, dtype=sum_dtype), p_BK, (target_B1 - before_B1).clamp_(min=0.0))
        token_B1 = (n_B1 * _BLOCK + k_B1).clamp_(max=size_V - 1)  # a NaN's block may be the padded one
        p_B1 = p_BK.gather(1, k_B1)
    logp_B1 = (p_B1 / total_B1).log()
    # log p = logit - c with one c per row, hence H = c - E[logit]; the only NaNs are 0 times -inf.
    mean_B1 = p_BV.narrow(1, 0, size_V).mul_(logits_BV).nansum(-1, keepdim=True)
    entropy_B1 = (logits_BV.gather(1, token_B1) - logp_B1).sub_(mean_B1 / total_B1).clamp_(min=0.0)
    token_B1 = torch.where(valid_B1, token_B1, -1)
    return Sample(token_B1.squeeze(1), logp_B1.to(dtype).squeeze(1), entropy_B1.to(dtype).squeeze(1))


def check_sampled(token_B: Tensor, uniform_B: Tensor) -> None:
    """Raise for the rows that `sample_unchecked` has marked.

    Raises:
        SettingError: u outside [0, 1], or a row without a distribution (a NaN or +inf among its logits, or -inf
            throughout).
    """
    bad_B = token_B < 0
    if not bool(bad_B.any()):
        return
    uniform_N = uniform_B[bad_B]
    if not torch.equal(uniform_N.clamp(0.0, 1.0), uniform_N):
        raise SettingError("uniform_B", uniform_N.tolist()[:8], "give numbers in [0, 1)")
    rows = bad_B.nonzero()[:, 0].tolist()
    remedy = (
        "each row needs a finite logit and neither NaN nor +inf; of a model that means weights that are not finite "
        "(lower learning_rate) or a temperature too small for its logits (raise temperature)"
    )
    raise SettingError("logits_BV", f"rows {rows[:8]}", remedy)


def uniforms(seed: int, key: str, sample: int, n: int) -> NDArray[np.float64]:
    """Return the first n uniform numbers of the stream of (seed, key, sample), which no other triple shares.

    Philox4x64-10 keyed by the 128-bit BLAKE2b digest of the triple; each number is the upper 53 bits of an output.
    The stream is the same in every process and on every machine, and a longer one begins with a shorter one.

    Args:
        seed: The run's seed.
        key: A name of the prompt, such as its text with the step.
        sample: The index of the sample within the prompt's group.
        n: The number of uniform numbers.

    Returns:
        [n], float64, in [0, 1).

    Raises:
        SettingError: n below 0.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Examples:
        >>> uniforms(0, "a prompt", 3, 4)[:2].tolist() == uniforms(0, "a prompt", 3, 2).tolist()
        True
    """
    if n < 0:
        raise SettingError("n", n, "give a count of 0 or more")
    text = f"{int(seed)},{int(sample)},{key}"  # the integers first, so that no two triples share a text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(n)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _first_index_above(cumulative_BK: Tensor, weight_BK: Tensor, target_B1: Tensor) -> Tensor:
    """Return [B, 1]: the first k with cumulative > target >= 0, whose weight is above 0 as the sum rises there.

    A target that rounding has moved to the total or above it is moved just below it.
    """
    if cumulative_BK.device.type != "cpu":
        cumulative_BK = _nondecreasing(cumulative_BK, weight_BK)
    below_B1 = cumulative_BK.narrow(1, -1, 1) * (1.0 - torch.finfo(cumulative_BK.dtype).eps)
    first_B1 = torch.searchsorted(cumulative_BK, torch.minimum(target_B1, below_B1), right=True)
    return first_B1.clamp_(max=cumulative_BK.shape[1] - 1)  # a NaN lies beyond the last


def _nondecreasing(cumulative_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """Return the cumulative sums corrected so that they never fall, and rise only where the weight is above 0.

    An accelerator adds the parts of a sum in parallel, each with its own rounding.
    """
    return cumulative_BK.masked_fill(weight_BK == 0.0, 0.0).cummax(-1).values
