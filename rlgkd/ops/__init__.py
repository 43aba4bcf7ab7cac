"""Pure tensor functions: tensors in, tensors out, no configuration and no state.

One file per idea: `divergence` between teacher and student, their `truncation` to the teacher's top k, `reduction` of
values per token to one number, `returns` and advantages, `policy_loss`, `sampling` of tokens, `filters` of it for
evaluation, `masks` of those that may come next, and the `schedule` of a setting. Each function states its equation and
its source.
Dimensions are those of the names: P prompt, G sample of a group, B sequence, T token, N action, V vocabulary.
"""

from rlgkd.ops import (
    behaviour_policy,
    divergence,
    logit_filters,
    policy_loss,
    reduction,
    returns,
    running_mean_std,
    sampling,
    schedule,
    token_masks,
    top_k_bucket,
)

__all__ = [
    "behaviour_policy",
    "divergence",
    "logit_filters",
    "policy_loss",
    "reduction",
    "returns",
    "running_mean_std",
    "sampling",
    "schedule",
    "token_masks",
    "top_k_bucket",
]
