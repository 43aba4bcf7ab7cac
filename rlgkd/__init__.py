"""rlgkd: reinforcement learning for text generation with distillation inside the objective.

Importing it registers the environments with Gymnasium and imports neither torch nor transformers.
"""

from __future__ import annotations

import gymnasium as gym

__version__ = "0.1.0"

for _id, _task in (("GroundedSummary", "grounded.env:grounded_summary"), ("DocstringSummary", "docstrings:docstring_summary")):
    gym.register(
        id=f"rlgkd/{_id}-v0",
        entry_point="rlgkd.envs.text_env:make",
        vector_entry_point="rlgkd.envs.vector_env:make",
        kwargs={"task": f"rlgkd.envs.{_task}"},
    )
