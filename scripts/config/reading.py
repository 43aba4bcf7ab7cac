"""Reads the settings of a run: from a recipe or a YAML file, with `key=value` on top.

Unknown names are refused with the nearest known one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from rlgkd.agents.defaults import CHOSEN as CHOSEN_BY_AGENTS
from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.scripts._yaml import dump_yaml, load_yaml
from rlgkd.scripts.config.other_names import OTHERS
from rlgkd.scripts.config.paths import OF_METHODS, settled
from rlgkd.scripts.config.recipes import METHOD, values_of
from rlgkd.scripts.config.run import AgentName, RunConfig, config_of, setting_names
from rlgkd.scripts.config.stages import check_heard
from rlgkd.secret_masks import masked
from rlgkd.settings import layered, marks

OF_THE_ENVIRONMENT = ("env_settings", "student", "student_layers", "teacher")
"""Settings of a recipe that mean nothing on another environment."""
CHOSEN = (*CHOSEN_BY_AGENTS, "eval_prompts", "eval_every_prompts")
"""Settings that are chosen by the model and the job where they are not given, or `auto` (docs/defaults.md)."""
MAX_QUOTED = 100
"""Characters of a value that an error shows in quotes."""


def read(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    recipe: str = "",
    choose: Callable[[RunConfig, frozenset[str]], Mapping[str, Any]] | None = None,
) -> RunConfig:
    """Settings from a recipe's name or a YAML file, with `key=value` overrides (values in YAML).

    Paths in a file are looked up from its folder, then from the current one; those of overrides from the current one.
    A recipe's models and settings of the environment belong to its own: on another environment they fall away. Its
    learning rate is that of its models: for another student it counts as not given.

    Args:
        source: The recipe or file.
        overrides: Put over it.
        recipe: What `source` is put over, if given: a method's recipe under the file of a task.
        choose: Returns values for settings that are not given, by the whole and the names of those that are
            (rlgkd.scripts.config.choices).

    Raises: SettingError for an unknown recipe, a missing or malformed file, an unknown key or a value out of range.
    """
    default_agent, default = (RunConfig.model_fields[name].default for name in ("agent", "env"))
    values, of_recipe = values_of(recipe or source, default_agent)
    over = values_of(source, default_agent)[0] if recipe else {}
    chosen = override(put_over(values, over), overrides)
    if of_recipe and chosen.get("env", default) != values.get("env", default):
        values = {key: value for key, value in values.items() if key not in OF_THE_ENVIRONMENT}
        chosen = override(put_over(values, over), overrides)
    config = check(chosen)
    if choose is None:
        return config
    given = {name for name, value in chosen.items() if value is not None and not _is_left(name, value)}
    own = {*over, *(one.partition("=")[0] for one in overrides)}
    if of_recipe and chosen.get("student") != values.get("student"):
        given -= {"learning_rate"} - own  # a recipe's is that of the models it was made with
    return check({**chosen, **choose(config, frozenset(given))})


def replaced(recipe: str, source: str | Path) -> str:
    """One line on what a file replaces of the method of the recipe that it is put over; empty if it keeps the method.

    Raises: SettingError as `read` does.
    """
    method = read(recipe).flat()
    over = values_of(source, RunConfig.model_fields["agent"].default)[0]
    changes = [
        f"{name} {over[name]} instead of {method[name]}"
        for name in METHOD
        if name in over and over[name] != method.get(name)
    ]
    remedy = "leave out of the file what the recipe is to decide"
    return f"{source} is put over {recipe}: {', '.join(changes)}; {remedy}" if changes else ""


def read_without_code(source: Path) -> RunConfig:
    """The settings in a run's file for what does not train: functions of the user's own and stages are left out.

    Raises: SettingError as `read` does.
    """
    values = values_of(source, RunConfig.model_fields["agent"].default)[0]
    dropped = {name for name in OF_METHODS if ":" in str(values.get(name))}
    if any(":" in str(stage.get(name)) for stage in values.get("stages") or () for name in OF_METHODS):
        dropped.add("stages")
    known = {*setting_names()} - dropped if dropped else values.keys()  # nor are the functions' parameters known
    return check({name: value for name, value in values.items() if name in known})


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `key=value` and `env_settings.NAME=value` put over them, paths from the current folder.

    Raises: SettingError for an override that is not of that form, whose value is no YAML, or that no stage hears.
    """
    typed: dict[str, Any] = {}
    for given in overrides:
        key, equals, text = given.partition("=")
        if not equals:
            raise SettingError("argument", given, "write overrides as key=value")
        try:
            given.encode()
        except UnicodeEncodeError as error:  # what Python makes of bytes that its locale cannot read
            raise SettingError(key, text, "its letters are no text in this locale; set LC_ALL=C.UTF-8") from error
        try:
            value = load_yaml(text) if text else ""
        except yaml.YAMLError as error:
            quoted = text.replace('"', r"\"")
            as_text = f"write '{key}=\"{quoted}\"'" if len(text) < MAX_QUOTED else "quote it"
            remedy = f"it is no YAML value; if it is a text, {as_text}"
            raise SettingError(key, text, remedy) from error
        if key.startswith("env_settings."):
            name = key.removeprefix("env_settings.")
            before = typed.get("env_settings", values.get("env_settings")) or {}
            key, value = "env_settings", {**before, name: settled(name, value, [Path()])}
        else:
            value = settled(key, value, [Path()])
        typed[key] = value
    chosen = put_over(values, typed)
    check_heard(chosen.get("stages"), typed)
    return chosen


def put_over(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen` over values. With another variant or agent, what was the old one's parameter or default falls away.

    Raises: SettingError for a variant whose brackets do not work.
    """
    before = values.get("agent", RunConfig.model_fields["agent"].default)
    if before != chosen.get("agent", before) and before in get_args(AgentName):
        defaults = config_of(before)().flat()
        values = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    return layered(RunConfig, values, chosen)


def check(values: Mapping[str, Any]) -> RunConfig:
    """Typed settings from plain values, the environment's own models where none are named.

    Raises: SettingError.
    """
    values = {key: value for key, value in values.items() if not _is_left(key, value)}
    for mark in marks(RunConfig):
        if isinstance(own := values.get(mark.kind), str):
            mark.spelled(own)  # the parameters of a function of the user's own are settings too
    known = setting_names()
    for key in values:
        if key not in known:
            ours = OTHERS.get(str(key))
            remedy = f"here it is {ours}" if ours else unknown_remedy(str(key), known)
            raise SettingError("setting", key, remedy)
    return RunConfig(**values)


def _is_left(name: str, value: object) -> bool:
    """Whether a setting says that it is to be chosen by the model."""
    return value == "auto" and name in CHOSEN


def dump(config: RunConfig) -> str:
    """The settings as YAML that runs again as it is, unless a secret in it had to be masked."""
    return dump_yaml(masked(config.flat()))
