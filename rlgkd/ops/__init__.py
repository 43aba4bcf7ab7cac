"""Pure tensor functions: tensors in, tensors out, no configuration and no state.

One file per idea: the `divergence` between teacher and student, its restriction to the teacher's top k
(`top_k_bucket`), the `reduction` of values per token to one number, `returns` and advantages, `policy_loss`, the
`sampling` of tokens, mixed distributions to sample from (`behaviour_policy`), which token counts how much (`gate`),
top-k and its like for evaluation (`logit_filters`), which tokens may come next (`token_masks`), `running_mean_std`, and
the `schedule` of a setting. Each function states its equation and its source.

The letters at the end of a tensor's name are its dimensions: P prompt, G sample of a group, B sequence, T token,
N action, V vocabulary.
"""

from rlgkd.ops import (
    behaviour_policy,
    divergence,
    gate,
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
    "gate",
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
