"""Lists what there is to name: `rlgkd list`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import rlgkd  # noqa: F401 - registers the environments
from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.scripts.config import docs
from rlgkd.scripts.config.run import RECIPES, read, recipe_names

METHOD_COORDINATES = (
    "agent",
    "alpha",
    "divergence",
    "student_fraction",
    "estimator",
    "horizon",
    "advantage",
    "policy_loss",
    "gate",
)
"""Settings that say where a recipe stands in the space of methods."""
COSTS = {"nothing": "", "teacher": "the teacher", "both": "student and teacher"}
"""What a gate needs before the gradient."""


def show(what: str = "") -> None:
    """Print one kind of name, or all kinds.

    Raises: SettingError for an unknown kind.
    """
    if what and what not in KINDS:
        raise SettingError("what", what, unknown_remedy(what, list(KINDS)))
    for kind in [what] if what else KINDS:
        Console(markup=False).print(KINDS[kind]())


def _envs() -> Table:
    table = Table("id", "what it is, and its settings", title="envs", show_lines=True)
    for name, takes, about in docs.environments():
        table.add_row(name, _with_note(about, takes))
    return table


def _settings() -> Group:
    groups = {
        "settings of a run": docs.run_settings(),
        "settings of an environment, as `env_settings.NAME`": docs.environment_settings(),
    }
    tables = []
    for title, settings in groups.items():
        table = Table("setting", "default", "what it is", title=title)
        for setting in settings:
            table.add_row(*setting)
        tables.append(table)
    return Group(*tables)


def _recipes() -> Table:
    """List each recipe with its coordinates in the space of methods."""
    table = Table("recipe", "what it is, and where it stands", title="recipes", show_lines=True)
    for name in recipe_names():
        lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
        comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
        about = comment.partition(" Deviates")[0]
        coordinates = ", ".join(f"{key} {value}" for key, value in _coordinates(name).items())
        table.add_row(name, _with_note(about, coordinates))
    return table


def _with_note(about: str, note: str) -> Text:
    return Text.assemble(about, "\n", (note, "dim"))


def _coordinates(recipe: str) -> dict[str, Any]:
    """Return METHOD_COORDINATES of a recipe."""
    settings = read(recipe).flat()
    coordinates = {key: settings[key] for key in METHOD_COORDINATES}
    for key in ("alpha", "student_fraction"):
        end = settings[f"{key}_end"]
        if end is not None:
            coordinates[key] = f"{settings[key]} to {end}"
    return coordinates


def _divergences() -> Table:
    from rlgkd.ops.divergence import DIVERGENCES

    return _functions("divergences", DIVERGENCES)


def _advantages() -> Table:
    from rlgkd.ops.returns import ADVANTAGES

    return _functions("advantages", ADVANTAGES)


def _behaviours() -> Table:
    from rlgkd.ops.behaviour_policy import BEHAVIOURS

    return _functions("behaviours", BEHAVIOURS)


def _gates() -> Table:
    from rlgkd.ops import gate

    table = Table("name", "definition", "weighs", "mean of 1 over", "reads logits of", title="gates")
    for name, function in gate.GATES.items():
        about = (function.__doc__ or "").splitlines() or [""]
        table.add_row(name, about[0], ", ".join(gate.terms(name)), gate.keeps_mean(name), COSTS[gate.cost(name)])
    return table


def _functions(title: str, functions: Mapping[str, Callable[..., Any]]) -> Table:
    """List the functions of a table of rlgkd.ops, each with the first line of its docstring."""
    table = Table("name", "definition", title=title)
    for name, function in functions.items():
        table.add_row(name, (function.__doc__ or "").splitlines()[0])
    return table


def _rewards() -> Table:
    from rlgkd.envs.rewards.registry import plugin_rewards, shipped_rewards

    table = Table("reward", "what it is", title="rewards by name")
    for name, reward in shipped_rewards().items():
        table.add_row(name, (reward.__doc__ or "").splitlines()[0])
    for name, entry_point in plugin_rewards().items():
        table.add_row(name, entry_point.value)
    table.add_row("{part: {name, weight}}", "A sum of rewards, each logged under its name.")
    return table


def _models() -> Table:
    from rlgkd.lm.loading import model_names

    table = Table("model", title="models that open without a path or a hub")
    for name in model_names():
        table.add_row(name)
    return table


KINDS: dict[str, Callable[[], RenderableType]] = {
    "settings": _settings,
    "envs": _envs,
    "recipes": _recipes,
    "divergences": _divergences,
    "advantages": _advantages,
    "behaviours": _behaviours,
    "gates": _gates,
    "rewards": _rewards,
    "models": _models,
}
