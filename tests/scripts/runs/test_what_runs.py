"""What SECURITY.md says of code: a settings file names code that runs, and `rlgkd generate` runs none of a run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_models import folder, model, tokenizer

from rlgkd.scripts.cli import main
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.generate import complete

CONFIG = """env: rlgkd/Dataset-v0
env_settings: {{data: t.jsonl, split_shares: null, reward: "mine.py:reward", max_new_tokens: 2, max_prompt_tokens: 16}}
student: {student}
teacher: null
alpha: 0
tokens: 4
eval_prompts: 1
prompts_per_update: 1
group_size: 2
"""


def test_generate_runs_no_code_that_a_run_names_and_evaluate_does(tmp_path: Path) -> None:
    name = folder(model(tokenizer()), tokenizer(), tmp_path / "m")
    (tmp_path / "t.jsonl").write_text('{"prompt": "Say N."}\n')
    (tmp_path / "mine.py").write_text("def reward(completions): return [0.0 for _ in completions]\n")
    (tmp_path / "t.yaml").write_text(CONFIG.format(student=name))
    run = tmp_path / "run"
    train.start(read(tmp_path / "t.yaml"), run, quiet=True)
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
        "def reward(completions): return [0.0 for _ in completions]\n"
    )
    config = (run / "config.yaml").read_text()
    assert "mine.py:reward" in config
    theirs = config.replace("mine.py:reward", "theirs.py:reward")
    own = theirs.replace("divergence: reverse_kl", f"divergence: {tmp_path}/theirs.py:own\nsharpness_of_own: 2")
    (run / "config.yaml").write_text(own)
    assert len(complete(str(run), ["Q"], max_new_tokens=2, greedy=True)) == 1
    assert own != theirs and not ran.exists()
    (run / "config.yaml").write_text(theirs)
    assert len(complete(str(run), ["Q"], max_new_tokens=2, greedy=True)) == 1
    assert not ran.exists()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), "--prompts", "1"])
    assert not stop.value.code and ran.exists()
