"""The worked example of CONTRIBUTING.md, as printed."""

import re
from pathlib import Path

import pytest
import torch

from rlgkd.ops import behaviour, divergence, returns

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


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
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    agent = names["agent"]
    assert agent.num_timesteps >= 1000
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    by_hand = 1 - (p * q).sqrt().sum()
    torch.testing.assert_close(divergence.get("squared_hellinger")(p.log(), q.log()), by_hand)
