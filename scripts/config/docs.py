"""Every setting of a run and of a text environment, with its default and what it is: `rlgkd list settings`.

Nothing is written down here: settings and their sentences are those of RunConfig and of the agents' configs, an
environment's are the arguments of TextTask and their docstring. `python -m rlgkd.scripts.config.docs` writes
docs/settings.md and agents/_signature.py, which tests hold to the same.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import gymnasium as gym

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.signature import typed_dicts
from rlgkd.scripts.config.run import AgentName, RunConfig, config_of
from rlgkd.settings import REQUIRED, Declared, arguments_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("docs") / "settings.md"
SIGNATURE = Path("agents") / "_signature.py"
HEAD = """\
# Settings

Written by `python -m rlgkd.scripts.config.docs` from where the settings are declared; `rlgkd list settings` prints the
same.

## Of a run

Given in a YAML file, or as `key=value` after `rlgkd train` and `rlgkd compare`. The agents of `rlgkd.agents` take those
that decide the training under the same names.
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
    """What a run takes; a default that depends on the agent is given for each."""
    kinds = {name: config_of(name) for name in get_args(AgentName)}
    defaults = {name: kind().flat() for name, kind in kinds.items()}
    own = {name: setting for name, setting in RunConfig.declared().items() if name in RunConfig.model_fields}
    declared = {
        **own,
        **AlgorithmConfig.declared(),
        **{k: v for kind in kinds.values() for k, v in kind.declared().items()},
    }
    declared |= AlgorithmConfig.declared()
    return [Setting(name, _default(setting, defaults), _about(setting)) for name, setting in declared.items()]


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
    about = arguments_of(inspect.getdoc(function) or "")
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
    lines = [
        HEAD,
        *_table("setting", "default", _code(run_settings())),
        OF_ENVIRONMENTS,
        *_table("id", "settings", ids),
        "",
        *_table("setting", "default", _code(environment_settings())),
        "",
    ]
    return "\n".join(lines)


def signature() -> str:
    """agents/_signature.py."""
    configs = {f"{name}Settings": config_of(name) for name in get_args(AgentName)}
    shared = AlgorithmConfig.declared().keys()
    own = {name: config for name, config in configs.items() if config.declared().keys() - shared}
    return typed_dicts({"AlgorithmSettings": AlgorithmConfig, **own})


def _default(setting: Declared, defaults: dict[str, dict[str, Any]]) -> str:
    """A setting's default, with the agents that have another one; of a variant's parameter, the variant's own."""
    if isinstance(setting.default, dict) and setting.default:
        return ", ".join(f"{owner} {plain(value)}" for owner, value in setting.default.items())
    if setting.default is REQUIRED:
        return "required"
    usual = plain(setting.default)
    own = {agent: plain(values[setting.name]) for agent, values in defaults.items() if setting.name in values}
    others = [f"{agent} {value}" for agent, value in own.items() if value != usual and len(own) == len(defaults)]
    return "; ".join([usual, *([", ".join(others)] if others else [])])


def _about(setting: Declared) -> str:
    """The sentence, with the choices if there are any."""
    choices = [choice for choice in get_args(setting.type) if isinstance(choice, str)]
    listed = f" ({', '.join(choices)})" if get_origin(setting.type) is Literal else ""
    return f"{setting.sentence}{listed}"


def _code(settings: list[Setting]) -> list[Setting]:
    return [Setting(f"`{s.name}`", s.default, s.about) for s in settings]


def _table(first: str, second: str, rows: list[Setting]) -> list[str]:
    lines = [(first, second, "what it is"), ("---",) * 3, *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


if __name__ == "__main__":
    import rlgkd  # noqa: F401 - registers the environments

    (ROOT / PAGE).write_text(page())
    (ROOT / SIGNATURE).write_text(signature())
