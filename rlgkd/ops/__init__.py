"""Pure tensor functions: tensors in, tensors out, no configuration and no state.

One file per idea: `divergence` between teacher and student, `reduction` of values per token to one number,
`returns` and advantages, `policy_loss`, and `sampling` of tokens. Each function states its equation and its source.
Dimensions are those of the names: P prompt, G sample of a group, B sequence, T token, N action, V vocabulary.
"""

from rlgkd.ops import divergence, policy_loss, reduction, returns, sampling

__all__ = ["divergence", "policy_loss", "reduction", "returns", "sampling"]
