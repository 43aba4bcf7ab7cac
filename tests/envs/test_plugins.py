"""Another package adds an environment and a reward by entry points; a broken or clashing one does no harm.

The package is the one that docs/environments.md prints, built and installed as a stranger's would be: a wheel, pip, a
folder on the path, a fresh interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from printed import examples

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
PROJECT = examples("docs/environments.md", "toml")[0]
TASKS = re.findall(r"`acme/tasks.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)[0]
PROBE = """
import json, sys, warnings
warnings.simplefilter("error")
import gymnasium as gym, rlgkd
imported = "acme" in sys.modules
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3
from rlgkd.envs import TextGenerationEnv
check_env(gym.make("acme/Polite-v0").unwrapped, skip_render_check=True)
check_sb3(gym.make("acme/Polite-v0").unwrapped)
vector = gym.make_vec("acme/Polite-v0", num_envs=3, max_new_tokens=2)
vector.reset(seed=0)
over = [vector.step(vector.action_space.sample())[2].tolist() for _ in range(2)][-1]
env = TextGenerationEnv(prompts=["a"], reward="polite", tokenizer="embedded:grounded-student")
scores = [score.reward for score in env.task.score([env.task.item("train", 0, 0)] * 2, ["please", "now"])]
print(json.dumps([imported, over, scores]))
"""


def python(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
    """Python in a fresh process that has `site` on its path, and this checkout after it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path]), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outside package, installed from its wheel without a network."""
    source, out, site = (tmp_path_factory.mktemp(name) for name in ("acme", "dist", "site"))
    (source / "acme").mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "acme" / "__init__.py").touch()
    (source / "acme" / "tasks.py").write_text(TASKS)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, *map(str, out.glob("*.whl"))], check=True)
    return site


@pytest.mark.slow
def test_an_installed_packages_environment_passes_the_checkers_and_its_reward_goes_by_name(site: Path) -> None:
    done = python("-c", PROBE, site=site)
    assert done.returncode == 0, done.stderr
    imported, over, scores = json.loads(done.stdout)
    assert imported is False, "import rlgkd imported the plugin"
    assert over == [True] * 3 and scores == [1.0, 0.0]


@pytest.mark.slow
def test_the_command_line_lists_what_an_installed_package_brings_and_trains_on_it(site: Path, tmp_path: Path) -> None:
    for kind, name in (("envs", "acme/Polite-v0"), ("rewards", "acme.tasks:politeness")):
        listed = python("-m", "rlgkd.scripts", "list", kind, site=site)
        assert name in listed.stdout, listed.stderr
    small = ["tokens=40", "prompts_per_update=2", "group_size=2", "eval_prompts=2", "threads=1", "env=acme/Polite-v0"]
    small += ["student=embedded:grounded-student", "teacher=embedded:grounded-teacher"]
    run = tmp_path / "run"
    done = python("-m", "rlgkd.scripts", "train", "quickstart", *small, "--out", str(run), "--quiet", site=site)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "summary.json").read_text())["env"] == "acme/Polite-v0"


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a package's metadata on the path, as pip does: its name and its entry points."""

    def install(name: str, entries: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)

    return install


def test_broken_and_clashing_environments_are_one_line_each_and_the_import_goes_on(
    installed: Callable[[str, str], None], tmp_path: Path
) -> None:
    installed("thief", "[rlgkd.envs]\nrlgkd/Arithmetic-v0 = thief:task\n")
    installed("first", "[rlgkd.envs]\nmine/Same-v0 = first:task\n")
    installed("second", "[rlgkd.envs]\nmine/Same-v0 = second:task\n")
    installed("broken", "[rlgkd.envs]\nno id at all! = broken:task\nbroken/Gone-v0 = broken:task\n")
    code = """
import gymnasium as gym, rlgkd
print(gym.registry["rlgkd/Arithmetic-v0"].kwargs["task"])
print(gym.registry["mine/Same-v0"].kwargs["task"])
try:
    gym.make("broken/Gone-v0")
except ValueError as error:
    print(error)
"""
    done = python("-c", code, site=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, same, gone = done.stdout.splitlines()
    first, second = ("first", "second") if same == "first:task" else ("second", "first")
    clash, malformed, stolen = sorted(done.stderr.splitlines())  # and nothing of where they were said
    assert clash == f"environment 'mine/Same-v0' of {second} is left out: {first} has one of that id"
    assert malformed == (
        "environment 'no id at all!' of broken is left out: its id does not register; name the entry point like "
        "namespace/Name-v0"
    )
    assert stolen == "environment 'rlgkd/Arithmetic-v0' of thief is left out: rlgkd has one of that id"
    assert ours == "rlgkd.envs.tasks.arithmetic:arithmetic"
    assert gone == "task: 'broken:task' does not work; it could not be imported: No module named 'broken'"


def test_clashing_and_broken_rewards_are_reported_and_ours_stay(
    installed: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from rlgkd.envs.rewards import registry
    from rlgkd.errors import SettingError

    installed("thief", "[rlgkd.rewards]\nexact = thief:reward\n")
    installed("broken", "[rlgkd.rewards]\ngone = broken:reward\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(registry.plugin_rewards()) == ["gone"]
    assert [record.getMessage() for record in caplog.records] == [
        "reward 'exact' of thief is left out: rlgkd has one of that name"
    ]
    assert registry.reward_from("exact")(["a"], ["a"]) == [1.0]
    with pytest.raises(SettingError, match="'broken:reward' does not work; it could not be imported"):
        registry.reward_from("gone")
