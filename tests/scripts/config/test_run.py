"""Settings: typed, overridden by key=value, unknown keys refused with the nearest known one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.torch_version import TorchVersion

from rlgkd.errors import SettingError
from rlgkd.scripts.comparison.grid import grid, parse_variation
from rlgkd.scripts.config.other_names import OTHERS
from rlgkd.scripts.config.reading import check, dump, read, replaced
from rlgkd.scripts.config.run import RunConfig, setting_names


def parameters(settings: RunConfig) -> dict[str, float]:
    """Those of the divergence."""
    return dict(settings.algorithm.objective.divergence.parameters)


def test_overrides_are_yaml_values_and_the_dump_reads_back_the_same() -> None:
    settings = read(
        "quickstart",
        ["agent=Reinforce", "alpha=0.25", "student_layers=[0, 1]", "teacher=", "env_settings={split: train}"],
    )
    assert settings.algorithm.alpha(1.0) == 0.25
    assert settings.algorithm.model.student_layers == (0, 1)
    assert settings.env_settings == {"split": "train"}
    assert check(yaml.safe_load(dump(settings))) == settings


def test_checkpoints_in_parts_are_refused_by_a_torch_that_does_not_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.9.0", "2.10.1+cpu", torch.__version__):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert read("quickstart", ["checkpoint_format=sharded"]).checkpoint_format == "sharded"
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0+cpu"))
    assert read("quickstart").checkpoint_format == "whole"
    with pytest.raises(SettingError, match=r"^checkpoint_format: 'sharded' .*2\.8\.0.*install 2\.9"):
        read("quickstart", ["checkpoint_format=sharded"])


def test_a_number_with_an_exponent_alone_is_a_number_wherever_settings_are_read(tmp_path: Path) -> None:
    """PyYAML reads 1e-1 as a text, which only the settings of known types would turn into a number again."""
    settings = read("quickstart", ["env_settings={a: 1e-1, b: '1e-1', c: -2E3, d: v1e1}", "alpha=25e-2"])
    assert settings.env_settings == {"a": 0.1, "b": "1e-1", "c": -2000.0, "d": "v1e1"}
    assert settings.algorithm.alpha(1.0) == 0.25
    (tmp_path / "mine.yaml").write_text(dump(settings))
    assert read(tmp_path / "mine.yaml") == settings
    assert parse_variation("alpha=1e-1,5e-1") == ("alpha", [0.1, 0.5])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("alhpa=1", "did you mean 'alpha'"),
        ("alpha=two", "number"),
        ("alpha=-1", "give a number in [0, 1]"),
        ("agent=Reinforced", "Reinforce"),
        ("alpha", "key=value"),
        ("alpha=[", "no YAML value"),
        ("divergence=jsd(x)", "write a name alone, or jsd(BETA)"),
        ("divergence=reverse_kl(0.1)", "write a name alone, or jsd(BETA)"),
        ("divergence=jsd(0.9", "write a name alone, or jsd(BETA)"),
        ("divergence=[jsd]", "known: "),
        ("divergence=jds(0.1)", "write a name alone, or jsd(BETA)"),
        ("num_generations=8", "setting: 'num_generations' does not work; here it is group_size"),
        ("report_to=wandb", "here it is trackers"),
        ("name=\udcc3\udca9", "set LC_ALL=C.UTF-8"),
        ("env_settings.prompt={q}\\nAnswer:", """write 'env_settings.prompt="{q}\\nAnswer:"'"""),
    ],
)
def test_a_bad_override_is_named_with_its_remedy(override: str, words: str) -> None:
    with pytest.raises(SettingError) as error:
        read("quickstart", [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_other_libraries_are_no_settings_here_and_answered_by_some_that_are() -> None:
    names = setting_names()
    for theirs, ours in OTHERS.items():
        first = re.match(r"[a-z_]+", ours)
        assert theirs not in names
        assert ours.startswith(("env_settings.", "--", "`rlgkd ", "env=")) or (first and first[0] in names), theirs


def test_the_learning_rate_rises_and_then_falls_to_its_end() -> None:
    settings = RunConfig(learning_rate=1.0, warmup=0.1, learning_rate_end=0.2)
    assert settings.learning_rate(1.0) == pytest.approx(0.01)
    assert settings.learning_rate(0.9) == pytest.approx(1.0)
    assert settings.learning_rate(0.0) == pytest.approx(0.2)
    assert settings.learning_rate(0.5) > settings.learning_rate(0.1)


def test_a_divergence_is_written_as_in_papers_and_brings_its_own_settings() -> None:
    assert parameters(read("quickstart", ["divergence=jsd(0.9)"])) == {"beta": 0.9, "normalized": False}
    assert parameters(read("quickstart", ["divergence=skew_forward_kl(0.2)"])) == {"skew": 0.2}
    assert parameters(read("rl-gkd", []))["beta"] == 0.9  # a recipe of JSD: its beta goes with it
    assert parameters(read("rl-gkd", ["divergence=reverse_kl"])) == {}
    assert parameters(read("rl-gkd", ["divergence=jsd"]))["beta"] == 0.9
    assert parameters(read("rl-gkd", ["divergence=jsd(0.1)"]))["beta"] == 0.1
    for typed in (["beta=0.5", "divergence=jsd(0.9)"], ["divergence=jsd(0.9)", "beta=0.5"]):
        with pytest.raises(SettingError, match="say it once"):
            read("rl-gkd", typed)
    with pytest.raises(SettingError, match=r"beta: 0.5 does not work; divergence is jsd\(0.9\); say it once"):
        check({"divergence": "jsd(0.9)", "beta": 0.5})
    cells = grid(read("rl-gkd", []), {"divergence": ["jsd(0.1)", "jsd", "reverse_kl"]}, [0], samples=1).cells
    chosen = [cell.settings.flat() for cell in cells]
    assert [(settings["divergence"], settings.get("beta")) for settings in chosen] == [
        ("jsd", 0.1),
        ("jsd", 0.9),
        ("reverse_kl", None),
    ]


def test_a_teacher_left_empty_is_an_empty_name() -> None:
    assert read("quickstart", ["agent=Reinforce", "teacher=''", "alpha=0"]).agent_arguments()["teacher"] is None


def test_a_setting_of_the_environment_is_given_behind_its_name() -> None:
    settings = read("quickstart", ["env_settings.max_new_tokens=24", "env_settings.device=cpu"])
    assert settings.env_settings == {"max_new_tokens": 24, "device": "cpu"}


@pytest.mark.parametrize("written", ["teacher: null", "teacher:", 'teacher: ""'])
def test_no_teacher_is_null_or_nothing(written: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{written}\n")
    settings = read(tmp_path / "mine.yaml")
    assert settings.teacher == "" and settings.student == "embedded:grounded-student"


@pytest.mark.parametrize("name", ["GroundedSummary", "Arithmetic", "Translate"])
def test_an_embedded_task_brings_its_own_student_and_teacher(name: str) -> None:
    expected = f"embedded:{name.removesuffix('Summary').lower()}"
    for settings in (check({"env": f"rlgkd/{name}-v0"}), read("ppo", [f"env=rlgkd/{name}-v0"])):
        assert settings.student == f"{expected}-student"
    assert check({"env": f"rlgkd/{name}-v0"}).teacher == f"{expected}-teacher"
    assert check({"env": f"rlgkd/{name}-v0", "student": "mine", "teacher": None}).teacher == ""


def test_a_recipes_models_belong_to_its_own_environment() -> None:
    with pytest.raises(SettingError, match=r"student: '' .*; rlgkd/Dataset-v0 brings no models: .*student=.*teacher="):
        read("quickstart", ["env=rlgkd/Dataset-v0", "env_settings.data=mine.csv"])
    settings = read("docstring-smollm2", ["env=rlgkd/Dataset-v0", "student=mine"])
    assert (settings.student, settings.algorithm.model.student_layers, settings.teacher) == ("mine", (), "")
    assert read("ppo", ["env=rlgkd/GroundedSummary-v0"]).teacher == "embedded:grounded-student"


def test_a_file_is_put_over_a_recipe_and_overrides_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "env: rlgkd/Translate-v0\nstudent: embedded:translate-student\nalpha: 1\ngroup_size: 2\nlearning_rate: 0.01\n"
    )
    settings = read(file, ["learning_rate=0.02"], recipe="gkd").flat()
    recipe = read("gkd").flat()
    assert settings["env"] == "rlgkd/Translate-v0" and settings["student"] == "embedded:translate-student"
    assert (settings["group_size"], settings["learning_rate"]) == (2, 0.02)
    for key in ("agent", "divergence", "beta", "student_fraction", "off_policy"):
        assert settings.get(key) == recipe.get(key)
    assert settings["env_settings"] == {} and settings["teacher"] == "embedded:translate-teacher"  # not the recipe's


def test_what_a_file_replaces_of_a_recipes_method_is_said(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("agent: Reinforce\nalpha: 0.25\nlearning_rate: 0.01\n")
    said = replaced("on-policy-kd", file)
    assert "mine.yaml is put over on-policy-kd: agent Reinforce instead of Distill, alpha 0.25 instead of 1.0;" in said
    file.write_text("agent: Distill\ntokens: 100\n")
    assert replaced("on-policy-kd", file) == ""


def test_another_divergence_in_the_file_drops_the_recipes_parameters(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("divergence: reverse_kl\n")
    settings = read(file, recipe="gkd")
    assert settings.env == read("gkd").env
    assert "beta" not in settings.flat() and settings.algorithm.objective.divergence.name == "reverse_kl"


def test_paths_of_a_file_are_its_folders_and_those_of_an_override_the_current_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, here = tmp_path / "mine", tmp_path / "here"
    for folder in (mine, here):
        for model in ("student", "reward-model"):
            (folder / model).mkdir(parents=True)
        for file in ("rows.csv", "mine.py"):
            (folder / file).touch()
    (here / "only.csv").touch()
    (here / "package").mkdir()
    (here / "package" / "inner.py").touch()
    monkeypatch.chdir(here)
    reward = [
        "exact",
        "mine:right",
        {"name": "mine.py:right", "than": 3},
        {"name": "RewardModel", "model": "reward-model"},
    ]
    (mine / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "student",
                "env": "rlgkd/Dataset-v0",
                "student": "student",
                "teacher": "embedded:grounded-teacher",
                "teacher_texts": "texts.jsonl",
                "off_policy": "teacher",
                "student_fraction": 0.5,
                "env_settings": {
                    "data": {"train": "rows.csv", "test": "only.csv"},
                    "reward": reward,
                    "tokenizer": "gpt2",
                },
            }
        )
    )
    settings = read(mine / "mine.yaml")
    assert (settings.name, settings.student, settings.algorithm.sampling.teacher_texts) == (
        "student",
        f"{mine}/student",
        f"{mine}/texts.jsonl",
    )
    assert settings.teacher == "embedded:grounded-teacher"
    assert settings.env_settings == {
        "data": {"train": f"{mine}/rows.csv", "test": f"{here}/only.csv"},
        "tokenizer": "gpt2",
        "reward": [
            "exact",
            f"{mine}/mine.py:right",
            {"name": f"{mine}/mine.py:right", "than": 3},
            {"name": "RewardModel", "model": f"{mine}/reward-model"},
        ],
    }
    given = ["student=student", "env_settings.data=rows.csv", "env_settings.reward={a: 'package.inner:right'}"]
    settings = read("../mine/mine.yaml", given)
    assert settings.student == f"{here}/student"
    assert settings.env_settings["data"] == f"{here}/rows.csv"
    assert settings.env_settings["reward"] == {"a": f"{here}/package/inner.py:right"}
    assert read("../mine/mine.yaml", ["env_settings={data: rows.csv}"]).env_settings == {"data": f"{here}/rows.csv"}
    (cell, _) = grid(settings, {"student": ["student", "embedded:grounded-student"]}, [0], samples=1).cells
    assert (cell.name, cell.settings.student) == ("student=student", f"{here}/student")
