"""Every setting of a run and of a text environment, with its default and what it is: `rlgkd list settings`.

Nothing is written down here: a run's settings and their sentences are the fields of RunSettings, an environment's are
the arguments of TextTask and their docstring. `python scripts/config/docs.py` writes docs/settings.md, which is held to
the same by a test.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gymnasium as gym

from rlgkd.scripts.config.run import RunSettings

PAGE = Path("docs") / "settings.md"
HEAD = """\
# Settings

Written by `python scripts/config/docs.py` from where the settings are defined; `rlgkd list settings` prints the same.

## Of a run

Given in a YAML file, or as `key=value` behind `rlgkd train` and `rlgkd compare`. The agents of `rlgkd.agents` take
those that decide the training under the same names.
"""
OF_ENVIRONMENTS = """
## Of an environment

Given as `env_settings` in a YAML file, as `env_settings.NAME=value` on the command line, or as keywords to `gym.make`.
`TextGenerationEnv` takes all of these. The ids have settings of their own:
"""


class Setting(NamedTuple):
    """A setting; `default` is as YAML has it, or `required`."""

    name: str
    default: str
    about: str


def run_settings() -> list[Setting]:
    """What a run takes; of a default that is the agent's own, what it is for which."""
    from rlgkd import agents
    from rlgkd.agents.algorithm import TextAlgorithm

    kinds = {name: getattr(agents, name) for name in get_args(RunSettings.model_fields["agent"].annotation)}
    own = {name: {**kind.defaults, **kind.preset} for name, kind in kinds.items()}
    found = []
    for name, field in RunSettings.model_fields.items():
        default = plain(field.get_default(call_default_factory=True))
        if field.default is None and name in TextAlgorithm.defaults:
            usual = TextAlgorithm.defaults[name]
            others = [f"{agent} {values[name]}" for agent, values in own.items() if values[name] != usual]
            default = f"{usual}{'; ' * bool(others)}{', '.join(others)}"
        found.append(Setting(name, default, field.description or ""))
    return found


def environment_settings() -> list[Setting]:
    """What every text environment is made of."""
    from rlgkd.envs.task import TextTask

    return arguments(TextTask.__init__)


def environments() -> list[Setting]:
    """The registered ids, the names of their settings in the place of a default, and a sentence about each."""
    from rlgkd.envs.registry import text_env_ids
    from rlgkd.errors import SettingError
    from rlgkd.imports import import_object
    from rlgkd.ops._registry import keywords, takes_any

    found = []
    for name in text_env_ids():
        task = gym.registry[name].kwargs.get("task", "")
        try:
            maker = import_object("task", task) if isinstance(task, str) else task
        except SettingError as error:
            found.append(Setting(name, "", error.remedy))
            continue
        made = callable(maker)  # else it is a task already, which takes nothing
        takes = [
            *(sorted(keywords(maker)) if made else []),
            *(["those of TextTask"] if made and takes_any(maker) else []),
        ]
        found.append(Setting(name, ", ".join(takes), (inspect.getdoc(maker) or str(task)).partition("\n")[0]))
    return found


def arguments(function: Callable[..., Any]) -> list[Setting]:
    """A function's arguments by name, from its signature and the `Args:` of its docstring."""
    section = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    about = {
        name: " ".join(text.split())
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    }
    return [
        Setting(p.name, "required" if p.default is p.empty else plain(p.default), about.get(p.name, ""))
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


def plain(value: Any) -> str:
    """A default as it would stand in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value)


def page() -> str:
    """docs/settings.md."""
    ids = [Setting(f"`{s.name}`", s.default, s.about) for s in environments() if s.name.startswith("rlgkd/")]
    return "\n".join([
        HEAD, *_table("setting", "default", _code(run_settings())), OF_ENVIRONMENTS,
        *_table("id", "settings", ids), "", *_table("setting", "default", _code(environment_settings())), "",
    ])  # fmt: skip


def _code(settings: list[Setting]) -> list[Setting]:
    return [Setting(f"`{s.name}`", s.default, s.about) for s in settings]


def _table(first: str, second: str, rows: list[Setting]) -> list[str]:
    lines = [(first, second, "what it is"), ("---",) * 3, *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


if __name__ == "__main__":
    import rlgkd  # noqa: F401 - registers the environments

    (Path(__file__).resolve().parents[2] / PAGE).write_text(page())
