"""A real vLLM server takes the student's weights and samples as it does. On request, for a CPU:

scripts/vllm_cpu install /tmp/vllm
python -m rlgkd.samplers.untied embedded:grounded-student /tmp/untied
scripts/vllm_cpu serve /tmp/vllm /tmp/untied 8000
RLGKD_VLLM_SAMPLER=http://127.0.0.1:8000 pytest tests/samplers/test_vllm.py

A second server, of a folder with tied embeddings such as rlgkd/assets/grounded-student, is RLGKD_VLLM_TIED: whether
its head follows depends on the processor, for oneDNN keeps a copy of a weight where it wants another order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd.agents import GRPO
from rlgkd.errors import SamplerError
from rlgkd.samplers.transfer import Transfer
from rlgkd.samplers.weights import ServedWeights
from rlgkd.statistics import mean_interval

URL, TIED = (os.environ.get(name, "") for name in ("RLGKD_VLLM_SAMPLER", "RLGKD_VLLM_TIED"))
needs_server = pytest.mark.skipif(not URL, reason="needs a vLLM server: RLGKD_VLLM_SAMPLER=http://127.0.0.1:8000")


def agent_of(url: str = "", **settings: object) -> GRPO:
    served = {"sampler": url, "sampler_timeout": 300.0} if url else {}
    agent = GRPO(
        "embedded:grounded-student",
        "rlgkd/GroundedSummary-v0",
        teacher="embedded:grounded-teacher",
        device="cpu",
        **{"seed": 0, "alpha": 0.5, "prompts_per_update": 4, "learning_rate": 1e-3, **served, **settings},
    )
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


@needs_server
@pytest.mark.parametrize("by", ["path", "gloo"])
def test_its_log_probabilities_are_the_students_and_its_weights_follow(by: str) -> None:
    agent = agent_of(URL, sampler_weights=by, temperature=1.2)
    agent.learn(500)
    assert len(agent.rows.rows) > 2
    largest = {name: max(row[f"train/{name}"] for row in agent.rows.rows) for name in ("mismatch", "mismatch_p99")}
    print(f"{by}: {len(agent.rows.rows)} updates, {largest}")
    assert largest["mismatch_p99"] < 1e-4
    assert all(row["train/sampler_failed"] == 0 for row in agent.rows.rows)
    np.testing.assert_allclose(agent.rollout.importance_BL, 1.0, atol=1e-3)
    weights: ServedWeights = agent.served_texts.weights
    with torch.no_grad():
        agent.student.head.weight.mul_(1.5)
        before = max(max(both) for both in weights._differences())
        weights.push()
    after = max(max(both) for both in weights._differences())
    print(f"{by}: the fixed text is off by {before:.3g} nats a token before a push, {after:.3g} after it")
    assert before > 0.1 and after < 1e-3


@needs_server
def test_texts_end_as_they_do_here_and_repeat_themselves() -> None:
    texts = []
    for _ in range(2):
        agent = agent_of(URL, prompts_per_update=8)
        agent.learn(1)
        texts.append([t.tokens_T.tolist() for t in agent.trajectories])
        assert {str(t.stop) for t in agent.trajectories} <= {"end", "length"}
    assert texts[0] == texts[1]


@needs_server
def test_runs_reach_what_local_ones_reach() -> None:
    """Held-out reward of GRPO with distillation, 5 seeds of some 8,000 tokens each, whose random numbers are others."""
    tables = []
    for url in ("", URL):
        rows = []
        for seed in range(1, 6):
            by = {"sampler_weights": "gloo"} if url else {}
            agent = agent_of(url, prompts_per_update=16, alpha=0.2, seed=seed, **by)
            agent.learn(8_000)
            rows.append(agent.evaluate(prompts=256).measures["reward"])
        tables.append(np.array(rows))
    local, served = tables
    difference = mean_interval(served - local)
    print(f"local {mean_interval(local)}, served {mean_interval(served)}, served less local {difference}")
    assert difference.low <= 0 <= difference.high and difference.high - difference.low < 0.25


@pytest.mark.skipif(not TIED, reason="needs a vLLM server of tied embeddings: RLGKD_VLLM_TIED=http://127.0.0.1:8001")
def test_a_tied_head_follows_or_is_caught() -> None:
    agent = agent_of(TIED)
    try:
        agent.learn(1)
    except SamplerError as error:
        assert "does not follow all weights" in str(error)
        print(error)
    else:
        assert agent.rows.rows[0]["train/mismatch_p99"] < 1e-4
        print("it follows")


class WithoutHead:
    """A transfer that leaves the head as it was."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer

    def push(self, weights: Mapping[str, torch.Tensor], version: str) -> None:
        self.transfer.push({name: value for name, value in weights.items() if name != "lm_head.weight"}, version)


@needs_server
@pytest.mark.parametrize("by", ["gloo", "path"])
def test_a_stale_head_is_caught(by: str) -> None:
    """The last test: what the server has after it is not known."""
    agent = agent_of(URL, sampler_weights=by)
    weights: ServedWeights = agent.served_texts.weights
    weights.transfer = WithoutHead(weights.transfer)
    with pytest.raises(SamplerError, match="does not follow all weights") as error:
        agent.learn(1)
    print(error.value)
