"""What a run says of itself."""

from __future__ import annotations

import pytest

from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.summary import objective_text


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("quickstart", "0.5 of the reward, 0.5 of reverse_kl to the teacher"),
        ("rl-gkd", "0.05 of the reward, 0.95 of jsd(0.9) to the teacher"),
        ("grpo", "1 of the reward"),
        ("opd-then-rl", "1 of reverse_kl to the teacher"),
        ("sft", "1 of the cross-entropy of given texts, which is shown as divergence"),
        ("fixed-negative", "1 of the estimator fixed_negative"),
    ],
)
def test_a_run_says_what_it_learns_from(recipe: str, text: str) -> None:
    assert objective_text(read(recipe)) == text
