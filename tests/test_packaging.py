"""What is shipped: four rooms under the one name rlgkd, whole, and an import that stays light.

Guards against: a top-level package named envs, agents or scripts (it would overwrite another distribution's); a room, a
model or a recipe left out of the wheel because a pattern in pyproject.toml misses it; a wheel that differs when built
from the sdist, where the links are folders; a room imported under its bare name; torch imported by `import rlgkd`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("envs", "agents", "scripts")
FOR_A_CHECKOUT = ("site", "test", "quickstart", "gpu_check", "vllm_cpu", "_venv.sh")
NOT_PACKAGED = {f"rlgkd/scripts/{name}" for name in FOR_A_CHECKOUT}
MAINTAINERS = (
    "rlgkd/scripts/assets/",
    "rlgkd/scripts/compression/",
    "rlgkd/scripts/frontier/",
    "rlgkd/scripts/paper/",
    "rlgkd/scripts/reproduction/",
    "rlgkd/scripts/rl_gkd/",
)


class Built(NamedTuple):
    sdist: Path
    wheel_of_tree: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built from a copy of this tree, so that no build folder is left here and none from before is taken in."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("rlgkd", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    _build(copy, "--wheel", "--outdir", out / "tree")
    _build(copy, "--outdir", out / "sdist")  # the sdist, and a wheel from it
    (sdist,), (tree,), (through,) = (out.glob(p) for p in ("sdist/*.tar.gz", "tree/*.whl", "sdist/*.whl"))
    return Built(sdist, tree, through)


@pytest.mark.slow
def test_the_wheel_holds_every_shipped_file_of_the_four_rooms_and_nothing_else(built: Built) -> None:
    there = _files_in_wheel(built.wheel_of_tree)
    metadata = {name for name in there if ".dist-info/" in name}
    assert there - metadata == _files_of_the_rooms()
    assert not [name for name in there if name.startswith(MAINTAINERS)]


def test_what_maintainers_need_is_in_the_repository() -> None:
    for folder in MAINTAINERS:
        assert list((ROOT / folder).glob("*.py"))


@pytest.mark.slow
def test_the_wheel_names_its_command_its_version_and_its_licence(built: Built) -> None:
    import rlgkd

    with zipfile.ZipFile(built.wheel_of_tree) as wheel:
        info = f"rlgkd-{rlgkd.__version__}.dist-info"
        assert "rlgkd = rlgkd.scripts.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
        assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
        assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_the_sdist_holds_files_and_no_links(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert not [m.name for m in members if m.issym() or m.islnk()]
    assert {m.name.partition("/")[2] for m in members if m.isfile()} >= _files_of_the_rooms()


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel_as_the_tree(built: Built) -> None:
    assert _files_in_wheel(built.wheel_of_sdist) == _files_in_wheel(built.wheel_of_tree)


@pytest.mark.slow
def test_an_installed_wheel_imports_its_rooms_from_where_it_lies(built: Built, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(built.wheel_of_tree)], check=True)
    names = ", ".join(["rlgkd", *(f"rlgkd.{room}" for room in ROOMS)])
    code = f"import {names}\nfor m in ({names}): print(m.__file__)"
    found = _python(code, cwd=empty, PYTHONPATH=str(site))
    assert found.returncode == 0, found.stderr
    expected = [site / "rlgkd" / "__init__.py", *(site / "rlgkd" / room / "__init__.py" for room in ROOMS)]
    assert [Path(line) for line in found.stdout.splitlines()] == expected


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_its_bare_name_and_says_the_right_one(room: str) -> None:
    refused = _python(f"import {room}", cwd=ROOT)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"ImportError: this is the package rlgkd.{room}: ")


def test_the_rooms_are_relative_links_in_the_core() -> None:
    assert {room: os.readlink(ROOT / "rlgkd" / room) for room in ROOMS} == {room: f"../{room}" for room in ROOMS}


def test_importing_rlgkd_imports_nothing_heavy() -> None:
    code = "import sys, rlgkd\nprint(*{name.partition('.')[0] for name in sys.modules})"
    found = _python(code, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    heavy = {"torch", "transformers", "stable_baselines3", "accelerate", "scipy", "matplotlib"}
    assert not heavy & set(found.stdout.split())


def _build(tree: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *map(str, arguments), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _python(code: str, *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter whose path starts at `cwd` and holds nothing of this process's."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=clean | env, capture_output=True, text=True)


def _files_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def _files_of_the_rooms() -> set[str]:
    """Every file of this tree's rooms that is shipped, by the name it has in a wheel."""
    files = {path.relative_to(ROOT) for room in ("rlgkd", *ROOMS) for path in _files_under(ROOT / room)}
    names = {f"{'' if file.parts[0] == 'rlgkd' else 'rlgkd/'}{file.as_posix()}" for file in files}
    return {name for name in names - NOT_PACKAGED if not name.startswith(MAINTAINERS)}


def _files_under(folder: Path) -> list[Path]:
    """Its files, following no link and leaving out what Python and the desktop put there."""
    walk = os.walk(folder, followlinks=False)
    return [Path(d) / f for d, _, files in walk for f in files if "__pycache__" not in d and not f.startswith(".")]
