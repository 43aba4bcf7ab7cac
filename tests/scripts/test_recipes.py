"""Every recipe names its paper and trains: its first updates are those of golden.json.

Locked by golden.json for each recipe with embedded models, at seed 0, to a relative 1e-3:
- `train/loss`: the policy term, divergence, entropy bonus and value loss, each with its reduction and weight;
- `train/divergence`: the divergence and its settings, the teacher's distribution, and which tokens are actions;
- `rollout/ep_rew_mean`: the order of prompts, the random stream of each sample, decoding, and the reward.
The second and third update also lock the optimizer's step, the learning rate's schedule, and the source (on-policy or
off-policy) of each batch.

Locked for every recipe: its first comment names a paper with a year, it has at most 18 settings, and its name is its
file's. Each recipe with embedded models also trains a T5 student under a T5 teacher, but for those of `CAUSAL_ALONE`.

`python tests/scripts/make_golden.py` remakes golden.json, whose header says where its numbers come from.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from short_runs import go_on
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from rlgkd.lm import load_tokenizer, save
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.config.recipes import RECIPES, recipe_names
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.train import start

GOLDEN = Path(__file__).with_name("golden.json")
EMBEDDED = [name for name in recipe_names() if "smollm2" not in name]
CAUSAL_ALONE = (
    "rlsd",
    "tgopd",
    "ra-opd",
    "sg-opd",
    "r2-opd",
    "sdar",
    "aopd",
    "iw-opd",
    "power-opd",
    "prefix-opd",
    "fixed-negative",
    "mopd",
)
"""Recipes whose T5 students are left out: `srpo` and `tip` stand for gates, of which these are others; `mopd` names its
teachers, which cannot be replaced by one."""
SMALL = (
    "tokens=300",
    "prompts_per_update=2",
    "eval_prompts=2",
    "eval_split=validation",
    "warmup=0",
    "eval_every_prompts=2",
)
PINNED = ("train/loss", "train/divergence", "rollout/ep_rew_mean")
UPDATES = 3


def small(name: str, *settings: str) -> RunConfig:
    """The recipe, for a few updates of a few texts."""
    group = min(2, read(name).algorithm.sampling.group_size)
    return read(name, [*SMALL, f"group_size={group}", *settings])


def rows_of(run: Path) -> list[dict[str, float]]:
    """The pinned columns of a run's log, one row per update."""
    with (run / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The divergence of an update in which the teacher has nothing to say, as sdpo's without a right text, is NaN.
    return [
        {column: float(row[column]) for column in PINNED if row.get(column, "nan") not in ("", "nan")} for row in rows
    ]


def first_updates(name: str, run: Path) -> list[dict[str, float]]:
    """The pinned columns of the first updates of a recipe's whole run."""
    start(small(name), run, quiet=True)
    return rows_of(run)[:UPDATES]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_its_paper_and_is_short(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    settings = [line for line in lines if not line.startswith("#")]
    assert lines[0].startswith("# ") and any(year in "".join(lines[:2]) for year in map(str, range(1992, 2027)))
    assert len(settings) <= 18
    assert read(name).name == name


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_first_updates_of_a_recipe_are_as_they_were(name: str, tmp_path: Path) -> None:
    rows = first_updates(name, tmp_path / "run")
    golden = json.loads(GOLDEN.read_text())["curves"][name]
    assert len(rows) == len(golden) >= 2
    for row, expected in zip(rows, golden, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert any(row != golden[0] for row in golden)


@pytest.fixture(scope="module")
def t5_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """A student and a teacher of the T5 family, with the tokenizer of an embedded model."""

    @cache
    def folders(embedded: str) -> list[str]:
        tokenizer = load_tokenizer(embedded)
        return [t5(tokenizer, seed, str(tmp_path_factory.mktemp("t5") / "model")) for seed in (0, 1)]

    return folders


def t5(tokenizer: PreTrainedTokenizerBase, seed: int, folder: str) -> str:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        initializer_factor=0.5,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save(T5ForConditionalGeneration(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize("name", [name for name in EMBEDDED if name not in CAUSAL_ALONE])
def test_a_recipe_trains_a_t5_student_under_a_t5_teacher(
    name: str, t5_folders: Callable[[str], list[str]], tmp_path: Path
) -> None:
    student, teacher = t5_folders(read(name).student)
    teacher = teacher if read(name).teacher else ""
    go_on(tmp_path, settings=small(name, f"student={student}", f"teacher={teacher}", "student_layers=[]"))
    rows = rows_of(tmp_path)
    assert rows and all(value == value for row in rows for value in row.values())  # no NaN


def test_the_golden_curves_say_where_they_come_from() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["header"]["command"] == "python tests/scripts/make_golden.py"
    assert golden["header"].keys() >= {"rlgkd", "torch", "seed", "machine", "date"}
    assert list(golden["curves"]) == EMBEDDED
