"""The examples of README.md, CONTRIBUTING.md and docs/rewards.md, as printed."""

import ast
import re
import socket
import subprocess
import sys
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


def test_the_served_reward_and_the_models_of_docs_rewards_do_what_is_printed(capsys, tmp_path):
    models, server, client = examples("docs/rewards.md")
    exec(compile(models, "docs/rewards.md", "exec"), {})
    true, false = ast.literal_eval(capsys.readouterr().out)
    assert true > 0.9 and false < 0.1
    (tmp_path / "server.py").write_text(server)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with subprocess.Popen([sys.executable, "server.py", port], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            exec(compile(client.replace("8000", port), "docs/rewards.md", "exec"), {})
        finally:
            process.kill()
    printed = capsys.readouterr().out.strip()
    assert f"It prints `{printed}`." in (ROOT / "docs/rewards.md").read_text()
