"""Stages as settings: what ends each, what each may set, and one clear line for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from rlgkd.agents.config import CHANGEABLE, AlgorithmConfig
from rlgkd.errors import SettingError
from rlgkd.ops.schedule import Schedule
from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.comparison.grid import grid, parse_variation
from rlgkd.scripts.config.reading import check, dump, read
from rlgkd.scripts.config.stages import Plateau


def stages(*given: dict[str, Any], **more: Any) -> Any:
    return check({"agent": "Reinforce", "tokens": 1000, "eval_every": 100, "stages": list(given), **more})


def test_each_stage_is_put_over_the_settings_of_the_run() -> None:
    settings = stages(
        {"alpha": 1, "divergence": "jsd", "beta": 0.9, "until": 300},
        {"alpha": 0.2, "alpha_end": 0.1, "learning_rate": 0.002, "until": [0.8, "plateau(-length, 2)"]},
        {"name": "the rest", "until": "plateau(truth)"},
        alpha=0.5,
        learning_rate=0.001,
    )
    first, second, third = settings.parts
    assert [part.name for part in settings.parts] == [
        "alpha=1 divergence=jsd beta=0.9",
        "alpha=0.2 alpha_end=0.1 learning_rate=0.002",
        "the rest",
    ]
    assert [part.end for part in settings.parts] == [300, 800, 1000]
    assert [part.plateau for part in settings.parts] == [None, Plateau("-length", 2), Plateau("truth", 3)]
    assert first.algorithm.objective.divergence.name == "jsd" and first.algorithm.alpha == Schedule(1.0)
    assert second.algorithm.objective.divergence.name == "reverse_kl", "no stage inherits from the one before"
    assert third.algorithm == settings.algorithm
    assert [settings.in_stage(number).learning_rate(0.5) for number in range(3)] == pytest.approx(
        [settings.learning_rate(0.5), 2 * settings.learning_rate(0.5), settings.learning_rate(0.5)]
    )
    assert check(load_yaml(dump(settings))) == settings


def test_a_run_without_stages_is_one_part() -> None:
    settings = check({"agent": "Reinforce", "tokens": 1000})
    (part,) = settings.parts
    assert (part.end, part.plateau, part.algorithm) == (1000, None, settings.algorithm)
    assert settings.in_stage(0) is settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"alpha": 1}, {}], r"stages\[1\]\.until: None .*say when the stage ends"),
        ([{"until": 0.5}, {"alhpa": 0}], r"stages\[2\]\.alhpa: 0 .*'alpha'"),
        ([{"until": 0.5, "lora_rank": 2}, {}], r"stages\[1\]\.lora_rank: 2 .*one for the whole run"),
        ([{"until": 0.5, "env": "mine"}, {}], r"stages\[1\]\.env: 'mine' .*one for the whole run"),
        ([{"until": 0.5, "eval_every": 5}, {}], r"stages\[1\]\.eval_every: 5 .*outside of the stages"),
        ([{"until": 0.5, "alpha": 2}, {}], r"stages\[1\]\.alpha: 2 .*\[0, 1\]"),
        ([{"until": 0.5, "estimator": "k1"}, {}], r"stages\[1\]\.estimator: 'k1' .*expected gradient is 0"),
        ([{"until": 1000}, {}], r"stages\[1\]\.until: 1000 .*between 0 and 1,000 tokens"),
        ([{"until": 0.5}, {"until": 500}, {}], r"stages\[2\]\.until: 500 .*between 500 and 1,000"),
        ([{"until": True}, {}], r"stages\[1\]\.until: True .*plateau\(MEASURE, 3\)"),
        ([{"until": "plateau(truth, 0)"}, {}], r"stages\[1\]\.until: 'plateau\(truth, 0\)' "),
        ([{"until": ["plateau(a)", "plateau(b)"]}, {}], r"stages\[1\]\.until: 'plateau\(b\)' .*a list of two"),
        ([{"until": 0.5}, {"until": 0.7}], r"stages\[2\]\.until: 0\.7 .*goes on to the run's end"),
        ([{"until": "plateau(truth)", "alpha_end": 0.1}, {}], r"stages\[1\]\.alpha_end: 0\.1 .*as a list"),
        ("warm-up", "stages: 'warm-up' .*give a list of stages"),
        ([3], r"stages: \[3\] .*give a list of stages"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_stage(given: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        check({"agent": "Reinforce", "tokens": 1000, "eval_every": 100, "stages": given})
    assert "\n" not in str(caught.value)


def test_a_measure_needs_evaluations() -> None:
    with pytest.raises(SettingError, match=r"stages\[1\]\.until: 'plateau\(truth\)' .*set eval_every"):
        stages({"until": "plateau(truth)"}, {}, eval_every=0)


def test_stages_are_cells_of_a_comparison() -> None:
    key, values = parse_variation("stages=[],[{alpha: 1, until: 0.5}, {alpha: 0}],[{name: RL, until: 0.5}, {alpha: 1}]")
    base = check({"agent": "Reinforce", "tokens": 1000, "eval_prompts": 2})
    cells = grid(base, {key: values}, [0], samples=1).cells
    assert [cell.name for cell in cells] == ["stages=none", "stages=alpha=1 then alpha=0", "stages=RL then alpha=1"]
    assert [len(cell.settings.parts) for cell in cells] == [1, 2, 2]
    assert len({cell.folder for cell in cells}) == 3
    with pytest.raises(SettingError, match=r"teacher: None .*alpha is 1"):
        alone = check({"agent": "Reinforce", "eval_prompts": 2, "teacher": "", "alpha": 0})
        grid(alone, {key: values}, [0], samples=1)


def test_what_no_stage_would_hear_is_refused() -> None:
    with pytest.raises(SettingError, match=r"alpha: 0\.5 .*each stage of the run sets it.*give stages"):
        read("opd-then-rl", ["alpha=0.5"])
    assert read("opd-then-rl", ["learning_rate=0.1", "group_size=4"]).in_stage(1).algorithm.sampling.group_size == 4
    with pytest.raises(SettingError, match=r"alpha: 0 .*each stage"):
        grid(read("rl-then-opd"), {"alpha": [0, 1]}, [0], samples=1)


def test_the_settings_that_a_stage_may_have_exist() -> None:
    """A setting that is renamed must not fall out of the table."""
    assert {*AlgorithmConfig.declared()} >= CHANGEABLE


@pytest.mark.parametrize("written", ["3", "x", "true", "{alpha: 1}"])
def test_stages_that_are_no_list_are_refused(written: str) -> None:
    with pytest.raises(SettingError, match=r"stages: .*give a list of stages"):
        read("quickstart", [f"stages={written}", "seed=3"])
