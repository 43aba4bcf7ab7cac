"""rlgkd/Dataset-v0: a user's file is an environment by settings alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from gymnasium.utils import env_checker
from stable_baselines3.common import env_checker as sb3_checker

from rlgkd.envs.data.procedural import prompt_tenth
from rlgkd.errors import DataError

ROWS = [{"question": f"What is {n} + {n}?", "answer": 2 * n, "level": n % 3} for n in range(60)]
ASKED: dict[str, Any] = {"prompt": "Q: {question}\nA:", "reference": "answer"}


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def test_the_id_can_be_made_and_checked_as_it_is_and_with_data(tmp_path: Path) -> None:
    for given_ in ({}, {"data": str(write(tmp_path / "rows.jsonl")), **ASKED, "reward": "numeric"}):
        env = gym.make("rlgkd/Dataset-v0", max_new_tokens=4, max_prompt_tokens=24, **given_)
        env_checker.check_env(env.unwrapped, skip_render_check=True)
        sb3_checker.check_env(env.unwrapped)
        vector = gym.make_vec("rlgkd/Dataset-v0", num_envs=2, max_new_tokens=4, max_prompt_tokens=24, **given_)
        vector.reset(seed=0)
        assert vector.step(vector.action_space.sample())[1].shape == (2,)
        vector.close()


def test_a_prompt_that_is_too_long_is_reported_with_its_line_before_anything_else(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "long " * 400, "answer": 1, "level": 0}]
    with pytest.raises(DataError, match=r"prompt: 'rows\.jsonl:61' .* raise max_prompt_tokens"):
        gym.make("rlgkd/Dataset-v0", data=str(write(tmp_path / "rows.jsonl", rows)), **ASKED)


@pytest.mark.slow
def test_a_file_is_trained_on_by_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlgkd.scripts.cli import main

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "questions.jsonl")
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "env": "rlgkd/Dataset-v0",
                "tokens": 150,
                "prompts_per_update": 2,
                "group_size": 2,
                "eval_prompts": 2,
                "threads": 1,
                "student": "embedded:grounded-student",
                "alpha": 0,
                "env_settings": {
                    "data": "questions.jsonl",
                    "prompt": "Q: {question}\nA:",
                    "reference": "answer",
                    "reward": ["exact", {"name": "length", "words": 2, "weight": 0.5}],
                    "max_prompt_tokens": 32,
                    "max_new_tokens": 8,
                },
            }
        )
    )
    main_returns(main, ["train", "mine.yaml", "--out", "run", "--quiet"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert rows and all(row["key"].startswith("questions.jsonl:") for row in rows)
    assert all(set(row["parts"]) == {"exact", "length"} for row in rows)
    trained = [row for row in rows if row["prompt"].startswith("Q: What is ")]
    assert len(trained) == len(rows) and all(prompt_tenth(row["prompt"]) < 8 for row in rows)


def main_returns(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
