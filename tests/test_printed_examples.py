"""The examples of README.md and CONTRIBUTING.md, as printed."""

import ast
import re
from pathlib import Path

import pytest
import torch

from rlgkd.ops import behaviour, divergence, returns

ROOT = Path(__file__).parent.parent


def examples(file: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


@pytest.mark.slow
def test_a_reward_of_ones_own_in_ten_lines_does_what_the_readme_says(capsys):
    first, *_ = examples("README.md")
    exec(compile(first, "README.md", "exec"), {})
    (written,) = ast.literal_eval(capsys.readouterr().out.strip())
    assert written.startswith("Hugo Norberg") and len(written.split()) <= 7  # of 13 before


@pytest.fixture
def tables():
    """Restored when the test is over."""
    before = [(table, dict(table)) for table in (divergence.DIVERGENCES, returns.ADVANTAGES, behaviour.BEHAVIOURS)]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


@pytest.mark.slow
def test_the_worked_example_trains(tables):
    (example,) = examples("CONTRIBUTING.md")
    names: dict[str, object] = {}
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    agent = names["agent"]
    assert agent.num_timesteps >= 1000
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    by_hand = 1 - (p * q).sqrt().sum()
    torch.testing.assert_close(divergence.get("squared_hellinger")(p.log(), q.log()), by_hand)
