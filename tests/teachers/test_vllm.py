"""A real vLLM server says what the model in this process says. On request:

vllm serve rlgkd/assets/grounded-teacher --dtype float32 --max-logprobs 64 --enforce-eager --port 8000
RLGKD_VLLM=http://127.0.0.1:8000 pytest tests/teachers/test_vllm.py
"""

from __future__ import annotations

import os

import pytest
import tiny
from stable_baselines3.common.logger import Logger

from rlgkd.agents import Reinforce

URL = os.environ.get("RLGKD_VLLM", "")


@pytest.mark.skipif(not URL, reason="needs a vLLM server: RLGKD_VLLM=http://127.0.0.1:8000")
@pytest.mark.parametrize("settings", [{"teacher_top_k": 16, "divergence": "forward_kl"}, {"estimator": "sampled"}])
def test_training_is_that_with_the_teacher_in_the_process(settings: dict[str, object]) -> None:
    divergences = []
    for teacher in ("embedded:grounded-teacher", URL):
        agent = Reinforce(
            "embedded:grounded-student",
            "rlgkd/GroundedSummary-v0",
            teacher=teacher,
            device="cpu",
            seed=0,
            prompts_per_update=4,
            learning_rate=1e-3,
            teacher_timeout=300.0,
            **settings,
        )
        rows = tiny.Rows()
        agent.set_logger(Logger(None, [rows]))
        agent.learn(400)
        divergences.append([row["train/divergence"] for row in rows.rows])
        assert all(row.get("train/teacher_failed", 0) == 0 for row in rows.rows)
    assert len(divergences[0]) > 1
    assert divergences[1] == pytest.approx(divergences[0], abs=1e-5)
