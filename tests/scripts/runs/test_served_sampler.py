"""Runs whose texts a server samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from sampler_server import SamplerServer, sampling

from rlgkd.errors import SamplerError
from rlgkd.lm import load, load_tokenizer
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.scripts.runs import train

STUDENT = "embedded:grounded-student"
SMALL = (
    "agent=GRPO",
    "tokens=240",
    "prompts_per_update=2",
    "group_size=2",
    "eval_prompts=1",
    "warmup=0",
    "threads=1",
    "checkpoint_every=1",
    "staleness=1",
    "policy_loss=clipped",
    "max_mismatch=5",
    "sampler_retries=0",
)


@pytest.fixture
def server() -> Iterator[SamplerServer]:
    with sampling(load(STUDENT), load_tokenizer(STUDENT)) as running:
        yield running


def column(out: Path, name: str) -> list[str]:
    names, rows = read_table((out / "progress.csv").read_text())
    return [row[names.index(name)] for row in rows]


def test_a_run_that_its_server_has_ended_goes_on_to_the_bit(server, tmp_path) -> None:
    """Also where texts of the next update were sampled by weights that are gone."""
    settings = read("quickstart", [*SMALL, f"sampler={server.url}", f"sampler_folder={tmp_path / 'weights'}"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.start(settings, whole, quiet=True)
    assert (
        len(column(whole, "train/mismatch")) > 3
        and "Mismatch of sampling and training" in (whole / "report.html").read_text()
    )
    assert (tmp_path / "weights/model.safetensors").is_file()

    # The fixed text three times, the texts of two prompts; then, for each update, the fixed text and two prompts.
    server.sample_faults = chain(repeat(None, 3 + 2 + 3 + 3 + 1), repeat("status"))
    with pytest.raises(SamplerError, match=f"{server.url}: all 4 texts of an update failed"):
        train.start(settings, broken, quiet=True)
    checkpoints = sorted((broken / "checkpoints").glob("step-*"))
    assert checkpoints and "waiting" in json.loads((checkpoints[-1] / "state.json").read_text())["training"]
    server.sample_wrong()
    train.resume(broken, quiet=True)
    for name in ("progress.csv", "rollouts.jsonl", "model/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
