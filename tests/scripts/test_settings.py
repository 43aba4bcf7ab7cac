"""Settings: typed, overridden by key=value, unknown keys refused with the nearest known one."""

from __future__ import annotations

import pytest
import yaml

from rlgkd.errors import SettingError
from rlgkd.scripts.settings import RunSettings, check, dump, read


def test_overrides_are_yaml_values_and_the_dump_reads_back_the_same() -> None:
    settings = read(
        "quickstart",
        ["agent=Reinforce", "alpha=0.25", "student_layers=[0, 1]", "teacher=", "env_settings={split: train}"],
    )
    assert settings.alpha == 0.25
    assert settings.student_layers == [0, 1]
    assert settings.env_settings == {"split": "train"}
    assert check(yaml.safe_load(dump(settings))) == settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("alhpa=1", "did you mean 'alpha'"),
        ("alpha=two", "number"),
        ("alpha=-1", "greater than or equal to 0"),
        ("agent=Reinforced", "Reinforce"),
        ("alpha", "key=value"),
        ("alpha=[", "no YAML value"),
    ],
)
def test_a_bad_override_is_named_with_its_remedy(override: str, words: str) -> None:
    with pytest.raises(SettingError) as error:
        read("quickstart", [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_learning_rate_rises_and_then_falls_to_its_end() -> None:
    settings = RunSettings(learning_rate=1.0, warmup=0.1, learning_rate_end=0.2)
    assert settings.schedule(1.0) == pytest.approx(0.01)
    assert settings.schedule(0.9) == pytest.approx(1.0)
    assert settings.schedule(0.0) == pytest.approx(0.2)
    assert settings.schedule(0.5) > settings.schedule(0.1)


def test_a_teacher_left_empty_is_an_empty_name() -> None:
    assert read("quickstart", ["agent=Reinforce", "teacher=''", "alpha=0"]).agent_settings()["teacher"] is None


def test_a_setting_of_the_environment_is_given_behind_its_name() -> None:
    settings = read("quickstart", ["env_settings.max_new_tokens=24", "env_settings.device=cpu"])
    assert settings.env_settings == {"max_new_tokens": 24, "device": "cpu"}
