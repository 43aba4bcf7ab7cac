"""rlgkd: reinforcement learning for text generation with distillation inside the objective.

Importing it registers the environments with Gymnasium and imports neither torch nor transformers.
"""

from __future__ import annotations

import gymnasium as gym

__version__ = "0.1.0"

for _id, _task in {
    "GroundedSummary": "rlgkd.envs.grounded.env:grounded_summary",
    "Arithmetic": "rlgkd.envs.arithmetic:arithmetic",
    "Translate": "rlgkd.envs.translate:translate",
    "Guess": "rlgkd.envs.guess:guess",
    "DocstringSummary": "rlgkd.envs.docstrings:docstring_summary",
}.items():
    gym.register(
        id=f"rlgkd/{_id}-v0",
        entry_point="rlgkd.envs.text_env:TextGenerationEnv",
        vector_entry_point="rlgkd.envs.vector_env:TextVectorEnv",
        kwargs={"task": _task},
    )
