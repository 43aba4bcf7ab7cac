"""Sampling tokens from one uniform number per row, so that a sample belongs to its prompt and not to its batch.

`uniforms` is the stream of numbers of one (seed, prompt key, sample index); `sample` turns one number per row into one
token per row. Together with rows that do not see each other, a completion is then the same whatever else is decoded
beside it. Left out: top-k and its like (rlgkd.ops.logit_filters), greedy decoding (argmax).
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, softmax

from rlgkd.errors import SettingError

_BLOCK = 256
_FEW = 1024
"""Tokens of a vocabulary up to which F is summed at once: there it is the number of calls that takes time."""


class Sample(NamedTuple):
    """A token of each row, and what it was sampled with."""

    token_B: Tensor
    """[B], int64."""
    logp_B: Tensor
    """[B], log softmax(logits)[token] in nats, float32 or better."""
    entropy_B: Tensor
    """[B], of softmax(logits), in nats, as exact as the logits: to about 1e-7 of the largest."""


def sample(logits_BV: Tensor, uniform_B: Tensor) -> Sample:
    """Inverse transform in the order of token ids: y = min {v : F(v) > u}, F(v) = sum_{w <= v} p(w).

    Never returns a token of probability 0 (a logit of -inf, or so low that its probability underflows), whatever u and
    the rounding of F. F of a large vocabulary is summed in two levels, over blocks of 256 tokens and then within the
    block hit (in float64 where the device has it): a cumulative sum over the vocabulary loses digits in float32 and is
    slow in float64. (At [64, 49152] on one CPU core it takes 14 times as long as a softmax, the whole of this function
    1.8 times.)

    Args:
        logits_BV: [B, V], any floating dtype, the temperature already applied.
        uniform_B: [B], floating, in [0, 1].

    Raises:
        SettingError: shapes or dtypes that do not fit, u outside [0, 1], or a row without a distribution (a NaN or
            +inf among its logits, or -inf throughout).

    Source: Devroye 1986, "Non-Uniform Random Variate Generation", II.2.

    Example:
        >>> sampled = sample(torch.tensor([[0.25, 0.75]]).log().expand(3, 2), torch.tensor([0.0, 0.2499, 0.25]))
        >>> sampled.token_B.tolist(), round(sampled.logp_B[2].exp().item(), 4), round(sampled.entropy_B[2].item(), 4)
        ([0, 0, 1], 0.75, 0.5623)
    """
    if logits_BV.ndim != 2 or logits_BV.shape[1] == 0 or not logits_BV.is_floating_point():
        raise SettingError("logits_BV", (tuple(logits_BV.shape), logits_BV.dtype), "give [B, V] floating-point logits")
    if uniform_B.shape != logits_BV.shape[:1] or not uniform_B.is_floating_point():
        raise SettingError("uniform_B", (tuple(uniform_B.shape), uniform_B.dtype), "give one number in [0, 1) per row")
    logits_BV, uniform_B = logits_BV.detach(), uniform_B.detach()
    wide = torch.float32 if logits_BV.device.type == "mps" else torch.float64  # MPS has no float64
    dtype = torch.promote_types(logits_BV.dtype, torch.float32)
    p_BV = softmax(logits_BV, -1, dtype=dtype)
    size_V = logits_BV.shape[1]
    if size_V <= _FEW:
        block_BN = p_BV
    else:
        if size_V % _BLOCK:
            p_BV = pad(p_BV, (0, -size_V % _BLOCK))
        p_BNK = p_BV.unflatten(1, (-1, _BLOCK))
        block_BN = p_BNK.sum(-1)
    upto_BN = block_BN.cumsum(-1, dtype=wide)
    total_B1 = upto_BN.narrow(1, -1, 1)  # 1, but for the rounding of p
    target_B1 = uniform_B.to(wide).unsqueeze(-1) * total_B1
    if not torch.equal(target_B1.clamp(min=0.0).minimum(total_B1), target_B1):  # a NaN is equal to nothing
        _explain(total_B1, uniform_B)

    n_B1 = _first_above(upto_BN, block_BN, target_B1)
    if size_V <= _FEW:
        token_B1, p_B1 = n_B1, p_BV.gather(1, n_B1)
    else:
        before_B1 = (upto_BN - block_BN).gather(1, n_B1)
        p_BK = p_BNK[torch.arange(len(n_B1), device=p_BV.device), n_B1[:, 0]]
        k_B1 = _first_above(p_BK.cumsum(-1, dtype=wide), p_BK, (target_B1 - before_B1).clamp_(min=0.0))
        token_B1, p_B1 = n_B1 * _BLOCK + k_B1, p_BK.gather(1, k_B1)
    logp_B1 = (p_B1 / total_B1).log()
    # log p = logit - c for one c of the row, hence H = c - E[logit]; what is NaN is 0 times -inf.
    mean_B1 = p_BV.narrow(1, 0, size_V).mul_(logits_BV).nansum(-1, keepdim=True)
    entropy_B1 = (logits_BV.gather(1, token_B1) - logp_B1).sub_(mean_B1 / total_B1).clamp_(min=0.0)
    return Sample(token_B1.squeeze(1), logp_B1.to(dtype).squeeze(1), entropy_B1.to(dtype).squeeze(1))


def uniforms(seed: int, key: str, sample: int, n: int) -> NDArray[np.float64]:
    """Return the first n uniform numbers of the stream that belongs to (seed, key, sample) and to nothing else.

    Philox4x64-10 keyed by the 128-bit BLAKE2b digest of the triple; each number is the upper 53 bits of an output.
    The same in every process, on every machine, and a longer stream begins with the shorter one.

    Args:
        seed: the run's seed.
        key: what names the prompt, such as its text with the step.
        sample: the index of the sample among those of the prompt.
        n: how many numbers.

    Returns:
        [n], float64, in [0, 1).

    Raises:
        SettingError: n below 0.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Example:
        >>> uniforms(0, "a prompt", 3, 4)[:2].tolist() == uniforms(0, "a prompt", 3, 2).tolist()
        True
    """
    if n < 0:
        raise SettingError("n", n, "give a count of 0 or more")
    text = f"{int(seed)},{int(sample)},{key}"  # the numbers first, so that no two triples share a text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(n)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _first_above(cumulative_BK: Tensor, weight_BK: Tensor, target_B1: Tensor) -> Tensor:
    """Return [B, 1]: the first k with cumulative > target >= 0; it has a weight, for it is above all before it.

    A target that rounding has put at the sum of all, or above, is held just below it.
    """
    if cumulative_BK.device.type != "cpu":
        cumulative_BK = _rising(cumulative_BK, weight_BK)
    below_B1 = cumulative_BK.narrow(1, -1, 1) * (1.0 - torch.finfo(cumulative_BK.dtype).eps)
    return torch.searchsorted(cumulative_BK, torch.minimum(target_B1, below_B1), right=True)


def _rising(cumulative_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """Return the sums as they would be without rounding, never falling and rising only where there is a weight.

    On an accelerator the parts of a sum are added up in parallel, each with its own rounding.
    """
    return cumulative_BK.masked_fill(weight_BK == 0.0, 0.0).cummax(-1).values


def _explain(total_B1: Tensor, uniform_B: Tensor) -> None:
    """Raise the error for rows that cannot be sampled."""
    bad_B = ~total_B1[:, 0].isfinite()
    if bool(bad_B.any()):
        rows = bad_B.nonzero()[:, 0].tolist()
        raise SettingError("logits_BV", f"rows {rows[:8]}", "each row needs a finite logit and neither NaN nor +inf")
    raise SettingError("uniform_B", uniform_B.tolist()[:8], "give numbers in [0, 1)")
