"""The embedded models keep what their cards promise, and stay small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlgkd.envs.grounded.env import classifier, grounded_summary
from rlgkd.envs.grounded.pairs import pair
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel, load, load_tokenizer
from rlgkd.lm.loading import ASSETS


def truth(name: str) -> float:
    lm = LanguageModel(load(name), load_tokenizer(name))
    return float(evaluate(lm, None, grounded_summary(), split="test", prompts=512, seed=3).measures["truth"].mean())


def test_the_teacher_tells_the_truth_and_the_student_clearly_less_often() -> None:
    assert truth("embedded:grounded-teacher") >= 0.95
    assert truth("embedded:grounded-student") <= 0.75


def test_the_student_is_about_a_tenth_of_the_teacher() -> None:
    sizes = [load(f"embedded:grounded-{role}").num_parameters() for role in ("student", "teacher")]
    assert sizes[0] < sizes[1] / 8


def test_the_classifier_tells_near_misses_from_true_sentences() -> None:
    pairs = [pair("test", 5, index) for index in range(2000)]
    probabilities = classifier()([p.premise for p in pairs], [p.hypothesis for p in pairs])
    right = [(probability > 0.5) == p.entailed for probability, p in zip(probabilities, pairs, strict=True)]
    assert np.mean(right) >= 0.97


def test_all_weights_together_stay_under_20_megabytes_and_each_model_has_a_card() -> None:
    files = list(ASSETS.rglob("*"))
    assert sum(file.stat().st_size for file in files if file.is_file()) < 20e6
    folders = [path.parent for path in files if path.name == "config.json"]
    assert len(folders) == 3
    for folder in folders:
        assert "Scores" in (folder / "README.md").read_text()
        assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("role", ["teacher", "student", "nli"])
def test_the_models_share_one_tokenizer(role: str) -> None:
    shared = Path(ASSETS / "grounded-teacher" / "tokenizer.json").read_text()
    assert (ASSETS / f"grounded-{role}" / "tokenizer.json").read_text() == shared
