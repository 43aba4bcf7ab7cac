"""On a CUDA device an update is that of the CPU. Skipped where there is none; `scripts/gpu_check` runs it."""

from __future__ import annotations

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState

from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.lm import LanguageModel, decode

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def trained(kind, device: str, precision: str) -> tuple[list[list[int]], torch.Tensor]:
    """The last update's texts and the weights after three."""
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps to the first device of a process
    task = tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), max_new_tokens=8)
    agent = kind(
        tiny.model(vocabulary=4),
        TextVecEnv(task),
        teacher=tiny.model(vocabulary=4, seed=1),
        device=device,
        precision=precision,
        prompts_per_update=8,
        group_size=4,
        learning_rate=1e-3,
    )
    for _ in range(3):
        agent.learn(1)
    weights = torch.cat([p.detach().float().cpu().flatten() for p in agent.student.module.parameters()])
    return [t.tokens_T.tolist() for t in agent.trajectories], weights


@pytest.mark.parametrize("kind", [Reinforce, GRPO, PPO, Distill])
def test_an_update_is_that_of_the_cpu(kind):
    (cpu_texts, cpu), (texts, weights) = trained(kind, "cpu", "float32"), trained(kind, "auto", "float32")
    assert texts == cpu_texts
    torch.testing.assert_close(weights, cpu, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [Reinforce, GRPO, PPO, Distill])
def test_in_bfloat16_it_stays_finite_and_near(kind):
    (_, exact), (_, weights) = trained(kind, "auto", "float32"), trained(kind, "auto", "bfloat16")
    assert weights.isfinite().all()
    assert (weights - exact).abs().max() < 0.02  # three steps of at most some 1e-3 each, in any direction


def test_a_row_is_decoded_alone_as_in_a_batch():
    lm = LanguageModel(tiny.model(vocabulary=4).to("cuda"), TOKENIZER)
    uniforms_BT = torch.rand(16, 12, generator=torch.Generator().manual_seed(0)).double().numpy()
    prompts = [[1], [1, 2], [3, 1, 2, 1]] * 5 + [[2]]
    together = decode(lm, prompts, uniforms_BT=uniforms_BT, max_new_tokens=12)
    for row, prompt in enumerate(prompts):
        (alone,) = decode(lm, [prompt], uniforms_BT=uniforms_BT[row : row + 1], max_new_tokens=12)
        assert alone.ids == together[row].ids
