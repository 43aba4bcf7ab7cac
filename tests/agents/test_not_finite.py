"""Numbers that no training survives: one line that names the settings, not a tensor, and weights that stay whole."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import ModelError, TrainingError

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def agent(kind: type, model: str = "llama", **settings: Any) -> Any:
    task = tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")))
    teacher = tiny.model(model, vocabulary=4, seed=1) if kind is Distill else None
    given = {"alpha": 0.0} if kind is not Distill else {}
    student = tiny.model(model, vocabulary=4)
    return kind(student, TextVecEnv(task), teacher=teacher, prompts_per_update=2, group_size=4, **{**given, **settings})


@pytest.mark.parametrize("model", ["llama", "t5"])
def test_a_gradient_that_is_not_finite_names_its_remedies_and_leaves_the_weights(model: str) -> None:
    made = agent(Distill, model, divergence="forward_kl", temperature=1e-30)
    before = [p.detach().clone() for p in made.student.module.parameters()]
    with pytest.raises(TrainingError, match=r"gradient: (inf|nan) .* lower learning_rate, raise temperature") as raised:
        made.learn(100)
    assert "\n" not in str(raised.value)
    assert all(map(torch.equal, before, made.student.module.parameters()))


@pytest.mark.parametrize(("kind", "model"), [(Reinforce, "llama"), (PPO, "llama"), (Reinforce, "t5")])
def test_weights_that_a_step_has_lost_are_named_by_the_next_sampling(kind: type, model: str) -> None:
    made = agent(kind, model, learning_rate=1e38)
    with pytest.raises(ModelError, match=rf"model: '{model}' .* not finite: take an earlier .* lower learning_rate"):
        made.learn(200)
    with pytest.raises(ModelError, match="its logits are not finite"):
        made.generate(["A"])  # greedily
