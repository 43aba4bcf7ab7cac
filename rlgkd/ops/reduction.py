"""Reductions of values per token to one number, each named after what its mean averages over.

The primary form is `weights`: the weight of every token of each sequence, such that the sum of weight * value over
all tokens of all micro-batches, on all processes, is the reduction of the global batch. It needs the totals of the
global batch (`totals`, summed over micro-batches and processes), never the local ones: a local denominator is the
classic error under gradient accumulation. If gradients are averaged over processes instead of summed (DDP), multiply
the loss by the number of processes. The masked forms on [B, T] are defined through the same weights.

| name            | weight of a token of sequence b       | source                                           |
| --------------- | ------------------------------------- | ------------------------------------------------ |
| `sequence_mean` | 1 / (L_b * sequences)                 | GKD, arXiv 2306.13649; GRPO, arXiv 2402.03300    |
| `token_mean`    | 1 / tokens                            | DAPO, arXiv 2503.14476                           |
| `sequence_sum`  | 1 / sequences                         | REINFORCE: the policy gradient of E[r]           |
| `constant`      | 1 / (length * sequences)              | Dr. GRPO, arXiv 2503.20783                       |

A sequence without tokens (an all-masked row) contributes 0 and is not counted as a sequence. A batch of such rows
reduces to 0.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._registry import check_name

Reduction = Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def names() -> tuple[str, ...]:
    """Return the names that `weights` knows, sorted."""
    return tuple(sorted(REDUCTIONS))


def weights(
    name: str,
    lengths_B: Tensor,
    *,
    total_sequences: int,
    total_tokens: int,
    length: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the weight of every token of each sequence, so that the weighted sum is the reduction `name`.

    sum over the global batch of weights_B[b] * value_BT[b, t] = reduction, however the batch is split.

    Args:
        name: One of `names()`; see the table at the head of this file.
        lengths_B: [B], integers: the number of unmasked tokens in each sequence of this micro-batch.
        total_sequences: The number of sequences in the global batch with at least one token (see `totals`).
        total_tokens: The number of unmasked tokens in the global batch.
        length: The fixed divisor of `constant`, in tokens, above 0; for `constant` only.
        dtype: The dtype of the result.

    Returns:
        [B], finite and >= 0; 0 for a sequence without tokens.

    Raises:
        SettingError: an unknown name; a length that is missing, not positive or not taken; totals smaller than this
            micro-batch's.

    Examples:
        >>> weights("sequence_mean", torch.tensor([2, 4, 0]), total_sequences=2, total_tokens=6).tolist()
        [0.25, 0.125, 0.0]
    """
    check_name("reduction", name, REDUCTIONS)
    if lengths_B.ndim != 1 or lengths_B.is_floating_point() or lengths_B.dtype == torch.bool:
        raise SettingError("lengths_B", (tuple(lengths_B.shape), lengths_B.dtype), "give [B] integer token counts")
    if name == "constant" and not (length is not None and 0 < length < float("inf")):
        raise SettingError("length", length, "constant needs a fixed positive number of tokens")
    if name != "constant" and length is not None:
        raise SettingError("length", length, f"{name} does not take it; leave it out, or use constant")
    local_sequences, local_tokens = totals(lengths_B)
    remedy = "give the total of the global batch, over all micro-batches and processes"
    if total_sequences < local_sequences:
        raise SettingError(
            "total_sequences", total_sequences, f"this micro-batch alone has {local_sequences}; {remedy}"
        )
    if total_tokens < local_tokens:
        raise SettingError("total_tokens", total_tokens, f"this micro-batch alone has {local_tokens}; {remedy}")

    lengths_B = lengths_B.to(dtype)
    present_B = (lengths_B > 0).to(dtype)  # if all are 0, so may the totals be: hence max(1, ...)
    if name == "token_mean":
        return present_B / max(1, total_tokens)
    weights_B = present_B / max(1, total_sequences)
    if name == "sequence_mean":
        return weights_B / lengths_B.clamp(min=1)
    return weights_B if length is None else weights_B / length


def totals(lengths_B: Tensor) -> tuple[int, int]:
    """Return (sequences with at least one token, tokens), to be summed over micro-batches and processes.

    Examples:
        >>> totals(torch.tensor([2, 4, 0]))
        (2, 6)
    """
    sequences, tokens = torch.stack([(lengths_B > 0).sum(), lengths_B.sum()]).tolist()
    return int(sequences), int(tokens)


def sequence_mean(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(1/B) sum_b (1/L_b) sum_t value: the mean over each row's unmasked tokens, then over rows that have any.

    Args:
        value_BT: [B, T]; masked values are ignored, NaN included.
        mask_BT: [B, T], bool or 0/1 integers; True selects.

    Returns:
        A scalar; 0 if nothing is unmasked.

    Raises:
        SettingError: the shapes differ, or the mask is floating point.

    Source: Agarwal et al. 2024, arXiv 2306.13649, Section 3 (the 1/L_y of its divergence).

    Examples:
        >>> sequence_mean(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])).item()
        3.5
    """
    return _reduce("sequence_mean", value_BT, mask_BT)


def token_mean(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(1 / sum_b L_b) sum_b sum_t value: the mean over all unmasked tokens, so long rows weigh more.

    Arguments, result and errors as for `sequence_mean`. Source: Yu et al. 2025, arXiv 2503.14476 (DAPO).

    Examples:
        >>> token_mean(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])).item()
        3.0
    """
    return _reduce("token_mean", value_BT, mask_BT)


def sequence_sum(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(1/B) sum_b sum_t value: the sum over a row's unmasked tokens, then the mean over rows that have any.

    Arguments, result and errors as for `sequence_mean`. It is the reduction of a log-likelihood: grad log p(y).

    Examples:
        >>> sequence_sum(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])).item()
        4.5
    """
    return _reduce("sequence_sum", value_BT, mask_BT)


def constant(value_BT: Tensor, mask_BT: Tensor, length: float) -> Tensor:
    """(1/B) sum_b (1/length) sum_t value: as `sequence_sum`, over a fixed length in tokens, the same for every row.

    Arguments, result and errors as for `sequence_mean`; `length` must be above 0. Source: Liu et al. 2025,
    arXiv 2503.20783 (Dr. GRPO), where it removes the bias towards long wrong answers.

    Examples:
        >>> constant(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]]), length=2).item()
        2.25
    """
    return _reduce("constant", value_BT, mask_BT, length)


def _reduce(name: str, value_BT: Tensor, mask_BT: Tensor, length: float | None = None) -> Tensor:
    if value_BT.ndim != 2 or value_BT.shape != mask_BT.shape:
        raise SettingError("mask_BT.shape", tuple(mask_BT.shape), f"give [B, T] as value_BT, {tuple(value_BT.shape)}")
    if mask_BT.is_floating_point():
        raise SettingError("mask_BT.dtype", mask_BT.dtype, "give a bool mask: it selects tokens and cannot weight them")
    mask_BT = mask_BT.bool()
    lengths_B = mask_BT.sum(-1)
    total_sequences, total_tokens = totals(lengths_B)
    dtype = torch.promote_types(value_BT.dtype, torch.float32)
    weights_B = weights(
        name, lengths_B, total_sequences=total_sequences, total_tokens=total_tokens, length=length, dtype=dtype
    )
    return (weights_B * value_BT.to(dtype).masked_fill(~mask_BT, 0.0).sum(-1)).sum()
