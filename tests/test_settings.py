"""Settings: flat outside and nested inside, and nothing that is given is dropped in silence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from rlgkd.agents import Distill, Reinforce
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.envs import TextTask
from rlgkd.envs.rewards.registry import reward_from
from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.objective import Objective
from rlgkd.ops import divergence
from rlgkd.ops.schedule import Schedule
from rlgkd.settings import Settings, checked_arguments, layered, marks

GROUPS = [name for name, info in AlgorithmConfig.model_fields.items() if isinstance(info.default, Settings)]


def test_flat_names_go_to_their_groups_and_come_back() -> None:
    config = AlgorithmConfig(alpha=0.25, divergence="jsd", beta=0.9, group_size=8, teacher_decay=0.5, epochs=1)
    assert config.alpha == Schedule(0.25) and config.sampling.group_size == 8
    assert dict(config.objective.divergence.parameters) == {"beta": 0.9, "normalized": False}
    assert AlgorithmConfig(**config.flat()) == config
    assert Objective(divergence="jsd(0.9)") == Objective(divergence="jsd", beta=0.9)


@pytest.mark.parametrize("group", GROUPS)
def test_the_name_of_a_group_is_no_setting(group: str) -> None:
    with pytest.raises(SettingError, match="give its settings by their own names"):
        AlgorithmConfig(**{group: {"group_size": 8}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha_end": 0.5, "alpha": 1.5}, r"alpha: 1.5 does not work; give a number in \[0, 1\]"),
        ({"alpha_shape": "cosine"}, "say where it goes, with alpha_end"),
        ({"alpha_end": 0.5}, "say where it begins, with alpha"),
        ({"beta": 0.3}, "beta: 0.3 does not work; it belongs to jsd; set divergence"),
        ({"divergence": "reverse_kl", "beta": 0.3}, "it belongs to jsd; divergence is reverse_kl"),
        ({"divergence": {"jsd": 0.9}}, "divergence: None does not work; known: "),
        ({"group_size": "many"}, "give a whole number of 1 or more"),
        ({"mixture": "text"}, "choose one of batch, prompt"),
    ],
)
def test_what_does_not_work_is_refused_with_what_would(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        AlgorithmConfig(**settings)


@pytest.mark.parametrize("given", [{"alpha": 0.2}, {"alpha": 1.0, "alpha_end": 0.0}])
def test_what_an_agent_fixes_cannot_move_either(given: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="Distill fixes it at"):
        Distill.Config(**given)


def test_a_parameter_with_the_name_of_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ambiguous(teacher_logits, student_logits, *, temperature=1.0):
        return divergence.reverse_kl(teacher_logits, student_logits)

    monkeypatch.setitem(divergence.DIVERGENCES, "ambiguous", ambiguous)
    with pytest.raises(SettingError, match="name of a setting; rename the parameter"):
        Reinforce.Config(divergence="ambiguous", alpha=0.5)


def test_a_layer_above_replaces_variants_and_schedules_as_a_whole() -> None:
    below = {"alpha": 0.9, "alpha_end": 0.5, "divergence": "jsd", "beta": 0.1, "horizon": 0.5}
    above = layered(AlgorithmConfig, below, {"alpha": 0.3, "divergence": "reverse_kl"})
    assert above == {"alpha": 0.3, "divergence": "reverse_kl", "horizon": 0.5}
    assert layered(AlgorithmConfig, below, {"divergence": "jsd"})["beta"] == 0.1


def test_cross_entropy_on_data_needs_no_ratios_for_several_epochs() -> None:
    config = Distill.Config(divergence="forward_kl", estimator="sampled", student_fraction=0.0, epochs=2)
    assert config.optimizer.epochs == 2


@checked_arguments
def maker(
    url: str,
    *,
    words: int = 3,
    share: float = 0.5,
    kind: Literal["a", "b"] = "a",
    columns: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    reply: Callable[[str], str] | None = None,
    shown: bool = True,
    anything: Any = None,
) -> tuple[object, ...]:
    return url, words, share, kind, columns, headers, reply, shown, anything


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"url": 3}, "url: 3 does not work; give a text"),
        ({"words": "x"}, "give a whole number"),
        ({"words": True}, "give a whole number"),
        ({"words": 1.5}, "give a whole number"),
        ({"share": "1"}, "give a number"),
        ({"kind": "c"}, "give one of a, b"),
        ({"columns": "abc"}, "give a list of texts"),
        ({"columns": [1]}, "give a list of texts"),
        ({"headers": {"a": 1}}, "give names and values or null"),
        ({"headers": 3}, "give names and values or null"),
        ({"reply": 3}, "give a function or null"),
        ({"shown": "yes"}, "give true or false"),
    ],
)
def test_an_argument_of_another_type_is_refused_with_what_would_work(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SettingError, match=re.escape(remedy)):
        maker(**{"url": "x", **given})


def test_an_argument_of_its_type_is_left_as_it_is_and_none_is_its_default() -> None:
    given = {"words": np.int64(2), "share": 1, "columns": ["a"], "headers": {"a": "b"}, "reply": str, "anything": {1}}
    assert maker("x", **given) == ("x", 2, 1, "a", ["a"], {"a": "b"}, str, True, {1})
    assert maker("x", words=None, columns=None) == maker("x")


@pytest.mark.parametrize(
    "given",
    [{"name": "length", "words": "many"}, {"name": "served", "url": 3}, {"name": "judge", "url": "x", "model": ["m"]}],
)
def test_settings_of_a_named_reward_are_checked(given: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="does not work; give a"):
        reward_from(given)


@pytest.mark.parametrize("given", [{"end_tokens": 3}, {"quality": 3}, {"reward_timeout": "1"}, {"chat": "maybe"}])
def test_settings_of_a_task_are_checked(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(SettingError, match=f"^{name}: "):
        TextTask(prompts=["a"], reward=len, tokenizer="embedded:grounded-student", **given)


def test_a_value_of_megabytes_is_cut_in_its_error() -> None:
    assert len(str(SettingError("prompt", "x" * 10**6, "shorten it"))) < 600


@pytest.mark.parametrize("setting", ["alpha", "group_size", "learning_rate", "entropy_bonus", "teacher_decay"])
def test_true_is_no_number(setting: str) -> None:
    with pytest.raises(SettingError, match=f"{setting}: True does not work; give a"):
        AlgorithmConfig(**{setting: True})


def test_true_is_no_number_for_a_parameter_either() -> None:
    with pytest.raises(SettingError, match="beta: True does not work"):
        AlgorithmConfig(divergence="jsd", beta=True)
    assert dict(AlgorithmConfig(divergence="jsd", beta=0.5, normalized=True).objective.divergence.parameters)[
        "normalized"
    ]


@pytest.mark.parametrize("schedule", [lambda remaining: 1 / remaining, lambda remaining: "x", lambda remaining: 2.0])
def test_a_schedule_that_does_not_work_is_refused_at_the_door(schedule: Callable[[float], Any]) -> None:
    with pytest.raises(SettingError, match=r"alpha: .*give a number in \[0, 1\]"):
        AlgorithmConfig(alpha=schedule)
    if schedule(1.0) != 1.0:
        return
    assert AlgorithmConfig(alpha=lambda remaining: remaining).alpha(0.5) == 0.5


def test_of_very_many_known_names_only_the_nearest_are_listed() -> None:
    known = [f"setting_{number}" for number in range(200)]
    said = unknown_remedy("seting_7", known)
    assert said.startswith("did you mean 'setting_7'?") and "of 200 known ones the nearest: " in said
    assert len(said) < 200
    assert unknown_remedy("x", known) == "200 are known; rlgkd list has all"


OWN = '''
"""Functions of a user's own."""


def hellinger(teacher_logits, student_logits, *, sharp: float = 1.0):
    """Squared Hellinger distance.

    Args:
        sharp: Factor.
    """
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return sharp * (1.0 - ((log_p + log_q) / 2).exp().sum(-1))


def whole(teacher_logits, student_logits):
    return teacher_logits - student_logits


def alone(logits):
    return logits


def best(reward_PG, valid_PG):
    return (reward_PG - reward_PG.amax(1, keepdim=True)).masked_fill(~valid_PG, 0.0)


def ranks(reward_PG, valid_PG):
    return reward_PG.amax(1)


number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a file with functions of a user's own; the tables forget them after the test."""
    tables = [(mark.table, dict(mark.table)) for mark in marks(AlgorithmConfig)]
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / f"own_{tmp_path.name}.py"
    file.write_text(OWN)
    yield str(file)
    for table, before in tables:
        table.clear()
        table.update(before)


def test_a_function_of_ones_own_is_given_by_its_path_with_its_parameters(own: str) -> None:
    config = AlgorithmConfig(divergence=f"{own}:hellinger", sharp=0.5, advantage=f"{own}:best")
    variant = config.objective.divergence
    assert variant.parameters == (("sharp", 0.5),)
    logits = torch.randn(3, 5)
    assert variant.function(logits, logits).abs().max() < 1e-6
    assert AlgorithmConfig(**config.flat()) == config
    assert config == AlgorithmConfig(divergence=f"{own}:hellinger(0.5)", advantage=f"{own}:best")


def test_a_function_of_ones_own_is_given_as_such(own: str) -> None:
    def own_divergence(teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:
        return (teacher_logits - student_logits).abs().sum(-1)

    first = AlgorithmConfig(divergence=own_divergence)
    second = AlgorithmConfig(divergence=lambda t, s: (t - s).square().sum(-1))
    third = AlgorithmConfig(divergence=lambda t, s: (t - s).square().mean(-1))
    names = [config.objective.divergence.name for config in (first, second, third)]
    assert len({*names}) == 3
    assert AlgorithmConfig(divergence=own_divergence) == first == AlgorithmConfig(**first.flat())


@pytest.mark.parametrize(
    ("setting", "name", "words"),
    [
        ("divergence", "whole", r"of tensors \[2, 1\] it made \[2, 1\]; return \[2\]"),
        ("divergence", "alone", "it raised TypeError: "),
        ("divergence", "number", "it is of type int; name a function"),
        ("divergence", "missing", "it could not be imported: "),
        ("advantage", "ranks", r"it gave \[2\]; return \[P, G\]"),
        ("gate", "hellinger", "it reads teacher_logits; "),
    ],
)
def test_a_function_of_ones_own_that_cannot_work_is_refused(own: str, setting: str, name: str, words: str) -> None:
    with pytest.raises(SettingError, match=f"^{setting}: .*{words}"):
        AlgorithmConfig(**{setting: f"{own}:{name}"})
