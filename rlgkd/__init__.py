"""rlgkd: reinforcement learning for text generation with distillation inside the objective.

Importing it registers the environments with Gymnasium and imports neither torch nor transformers. Other packages add
environments by entry points in the group `rlgkd.envs`: the name is the environment's id, the value the import path of a
function that returns its task. Nothing of such a package is imported until the environment is made.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path

import gymnasium as gym

__version__ = "0.1.0"
_log = logging.getLogger(__name__)

if Path(__file__).with_name("envs").is_file():  # git writes a link as a file where it may not make links
    raise ImportError(
        "this clone has no symbolic links, which join the rooms to the package: "
        "clone it again with `git -c core.symlinks=true clone ...` (on Windows in developer mode, or in WSL)"
    )

_TASKS = {
    "GroundedSummary": "rlgkd.envs.tasks.grounded.env:grounded_summary",
    "Arithmetic": "rlgkd.envs.tasks.arithmetic:arithmetic",
    "Translate": "rlgkd.envs.tasks.translate:translate",
    "Guess": "rlgkd.envs.tasks.guess:guess",
    "Calculator": "rlgkd.envs.tasks.calculator:calculator",
    "DocstringSummary": "rlgkd.envs.tasks.docstrings:docstring_summary",
    "Dataset": "rlgkd.envs.tasks.dataset:dataset",
    "ReasoningGym": "rlgkd.envs.tasks.reasoning_gym:reasoning_gym",
    "OpenEnv": "rlgkd.envs.tasks.openenv:openenv",
}
_packages: dict[str, str] = {}
"""The package that each id comes from."""


def _register(id_: str, task: str, package: str) -> None:
    """Register a task as environments, scalar and vector; an id that cannot be registered is skipped with a warning."""
    registered = gym.registry.get(id_)
    if registered is not None and registered.kwargs.get("task") == task:  # rlgkd was imported before, and reloaded
        return
    if registered is not None:
        owner = _packages.get(id_, str(registered.entry_point))
        _log.warning("environment %r of %s is left out: %s has one of that id", id_, package, owner)
        return
    try:
        gym.register(
            id=id_,
            entry_point="rlgkd.envs.text_env:TextGenerationEnv",
            vector_entry_point="rlgkd.envs.vector_env:TextVectorEnv",
            kwargs={"task": task},
        )
        _packages[id_] = package
    except gym.error.Error:
        _log.warning(
            "environment %r of %s is left out: its id does not register; name the entry point like namespace/Name-v0",
            id_,
            package,
        )


for _name, _task in _TASKS.items():
    _register(f"rlgkd/{_name}-v0", _task, "rlgkd")
for _entry in entry_points(group="rlgkd.envs"):
    _register(_entry.name, _entry.value.partition("[")[0].strip(), _entry.dist.name if _entry.dist else _entry.value)
