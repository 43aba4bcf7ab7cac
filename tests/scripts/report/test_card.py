"""The model card: what was measured and what was set, as Markdown that no text of a run can break out of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from sample_run import make_run

from rlgkd.scripts.report.card import model_card, write_card
from rlgkd.scripts.report.run_files import read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path)
    (tmp_path / "model").mkdir()
    return tmp_path


def change(run: Path, **values: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, **values}))


def test_every_measure_stands_in_the_card_with_its_interval(run: Path) -> None:
    text = write_card(run).read_text()
    assert text == (run / "model" / "README.md").read_text()
    assert "| Reward | 0.641 (0.620 to 0.662) | 0.902 (0.888 to 0.916) | 0.944 (0.934 to 0.954) | +0.26" in text
    assert "| Truth | 62.1% (59.1 to 65.1) | 88.0% (86.0 to 90.0) |" in text
    assert "| Reverse KL, nats/token |" in text


def test_alpha_beta_teacher_data_and_command_stand_in_the_card(run: Path) -> None:
    hashed = "ba7816bf" * 8
    change(
        run, alpha=0.25, alpha_end=0.5, sources=[{"setting": "data", "name": "rows.jsonl", "sha256": hashed}, "damaged"]
    )
    text = model_card(read_run(run))
    for line in (
        "| alpha | 0.25 to 0.5 |",
        "| beta = alpha / (1 - alpha) | 0.333 to 1 |",
        f"| data | rows.jsonl, SHA-256 {hashed} |",
        "| teacher | embedded:grounded-teacher |",
        "    rlgkd train config.yaml",
    ):
        assert line in text, line
    assert (run / "config.yaml").read_text().strip() in text


def test_a_run_in_stages_says_how_long_each_was_and_not_one_alpha(run: Path) -> None:
    stages = [{"name": "distil", "tokens": 0, "end": 1200}, {"name": "reinforce", "tokens": 1200, "end": 3000}]
    change(run, alpha=1, alpha_end=0, stages=stages)
    text = model_card(read_run(run))
    assert "| stage distil | from token 0 to 1,200; its objective is in the settings |" in text
    assert "| stage reinforce | from token 1,200 to 3,000;" in text and "| alpha |" not in text


def test_the_hub_reads_the_head_and_gets_no_path_of_this_machine(run: Path) -> None:
    (run / "config.yaml").write_text("student: /home/me/secret/models/small\nteacher: owner/large\nalpha: 1\n")
    text = model_card(read_run(run))
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlgkd", "reinforcement-learning", "distillation"],
    }
    assert "\nmodels/small, trained by rlgkd" in text and "with owner/large as the teacher" in text
    (run / "config.yaml").write_text("student: owner/small\n")
    assert "base_model: owner/small\n" in model_card(read_run(run))


def test_texts_of_a_run_are_no_markup(run: Path) -> None:
    hostile = "</a>| # x `y` [z](http://w)\n\n# Head"
    env = {"system": hostile, "stop": ["\n", "``"], "chat": True}
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "a", "student": "```", "env_settings": env}))
    change(run, name=hostile)
    text = model_card(read_run(run))
    assert "# \\</a\\>\\| # x \\`y\\` \\[z\\](http://w) # Head\n" in text
    assert "System message: `` </a>| # x `y` [z](http://w) # Head ``." in text
    assert "Texts end before ` '\\n' `, ``` '``' ```." in text
    assert "````yaml\n" in text and text.rstrip().endswith("````")


def test_a_damaged_run_still_has_a_card(run: Path) -> None:
    (run / "summary.json").write_text("{")
    text = model_card(read_run(run), encoder_decoder=True)
    assert "What was measured" not in text and "AutoModelForSeq2SeqLM.from_pretrained" in text
