"""A real vLLM server takes the student's weights and samples as it does. On request, for a CPU:

scripts/vllm_cpu install /tmp/vllm
python -m rlgkd.samplers.untied embedded:grounded-student /tmp/untied
scripts/vllm_cpu serve /tmp/vllm /tmp/untied 8000
RLGKD_VLLM_SAMPLER=http://127.0.0.1:8000 pytest tests/samplers/test_vllm.py

A second server, of the folder rlgkd/assets/grounded-student itself, whose embeddings are tied, is RLGKD_VLLM_TIED.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd.agents import GRPO
from rlgkd.errors import SamplerError
from rlgkd.samplers.weights import ServedWeights

URL, TIED = (os.environ.get(name, "") for name in ("RLGKD_VLLM_SAMPLER", "RLGKD_VLLM_TIED"))
needs_server = pytest.mark.skipif(not URL, reason="needs a vLLM server: RLGKD_VLLM_SAMPLER=http://127.0.0.1:8000")


def agent_of(url: str = "", **settings: object) -> GRPO:
    served = {"sampler": url, "sampler_timeout": 300.0} if url else {}
    agent = GRPO(
        "embedded:grounded-student", "rlgkd/GroundedSummary-v0", teacher="embedded:grounded-teacher", device="cpu",
        **{"seed": 0, "alpha": 0.5, "prompts_per_update": 4, "learning_rate": 1e-3, **served, **settings},
    )  # fmt: skip
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


@needs_server
@pytest.mark.parametrize("by", ["path", "gloo"])
def test_its_log_probabilities_are_the_students_and_its_weights_follow(by: str) -> None:
    agent = agent_of(URL, sampler_weights=by, temperature=1.2)
    agent.learn(500)
    assert len(agent.rows.rows) > 2
    assert max(row["train/mismatch_p99"] for row in agent.rows.rows) < 1e-4
    assert all(row["train/sampler_failed"] == 0 for row in agent.rows.rows)
    np.testing.assert_allclose(agent.rollout.importance_BL, 1.0, atol=1e-3)
    weights: ServedWeights = agent.served_texts.weights
    with torch.no_grad():
        agent.student.head.weight.mul_(1.5)
        assert max(max(both) for both in weights._differences()) > 0.1  # not yet there
        weights.push()
    assert max(max(both) for both in weights._differences()) < 1e-3


@needs_server
def test_texts_end_as_they_do_here_and_repeat_themselves() -> None:
    texts = []
    for _ in range(2):
        agent = agent_of(URL, prompts_per_update=8)
        agent.learn(1)
        texts.append([t.tokens_T.tolist() for t in agent.trajectories])
        assert {str(t.stop) for t in agent.trajectories} <= {"end", "length"}
    assert texts[0] == texts[1]


@pytest.mark.skipif(not TIED, reason="needs a vLLM server of tied embeddings: RLGKD_VLLM_TIED=http://127.0.0.1:8001")
def test_a_stale_head_is_caught() -> None:
    with pytest.raises(SamplerError, match="does not follow all weights"):
        agent_of(TIED).learn(1)


@needs_server
def test_a_run_reaches_what_the_local_one_reaches() -> None:
    """Held-out reward of a run of some 8,000 tokens, within the interval of the local run's."""
    scores = []
    for url in ("", URL):
        agent = agent_of(url, prompts_per_update=16, alpha=0.2, sampler_weights="gloo" if url else "path")
        agent.learn(8_000)
        scores.append(agent.evaluate(prompts=256).scores()["reward"])
    local, served = scores
    print(f"local {local}, served {served}")
    assert served.low <= local.high and local.low <= served.high
