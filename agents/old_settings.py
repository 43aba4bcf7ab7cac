"""Settings in files that an older version wrote, as they are written today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_REDUCTION = {"GRPO": "sequence_mean", "PPO": "token_mean"}
"""What a null `policy_reduction` was before `reduction`; every other agent's was `sequence_sum`."""


def upgraded(settings: Mapping[str, Any], agent: str) -> dict[str, Any]:
    """All settings of an agent, from a file that lists them, with what was meant by those that have changed.

    Before `reduction`, `policy_reduction` and `divergence_reduction` were all there was: such a file keeps its own.
    A file that leaves either out lists not all settings and was written by hand; it is returned as it is.
    """
    if "reduction" in settings or not {"policy_reduction", "divergence_reduction"} <= settings.keys():
        return dict(settings)
    own = settings["policy_reduction"] or OWN_REDUCTION.get(agent, "sequence_sum")
    return {**settings, "policy_reduction": own}
