"""Lists what there is to name: `rlgkd list`."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

import rlgkd  # noqa: F401 - registers the environments
from rlgkd.errors import SettingError
from rlgkd.ops._registry import unknown_remedy
from rlgkd.scripts.config import docs
from rlgkd.scripts.config.run import RECIPES, read, recipe_names


def show(what: str = "") -> None:
    """Print one kind, or all of them.

    Raises: SettingError for an unknown kind.
    """
    if what and what not in KINDS:
        raise SettingError("what", what, unknown_remedy(what, list(KINDS)))
    for kind in [what] if what else KINDS:
        Console().print(KINDS[kind]())


def _envs() -> Table:
    table = Table("id", "what it is, and its settings", title="envs", show_lines=True)
    for name, takes, about in docs.environments():
        table.add_row(name, f"{escape(about)}\n[dim]{takes}[/dim]")
    return table


def _settings() -> Group:
    tables = []
    for title, rows in {
        "settings of a run": docs.run_settings(),
        "settings of an environment, behind `env_settings.`": docs.environment_settings(),
    }.items():
        tables.append(Table("setting", "default", "what it is", title=title))
        for row in rows:
            tables[-1].add_row(*map(escape, row))
    return Group(*tables)


def _recipes() -> Table:
    """Each recipe by its coordinates in the space of methods."""
    columns = ("agent", "alpha", "divergence", "student_fraction", "estimator", "horizon", "advantage", "policy_loss")
    table = Table("recipe", "what it is, and where it stands", title="recipes", show_lines=True)
    for name in recipe_names():
        settings, lines = read(name), (RECIPES / f"{name}.yaml").read_text().splitlines()
        text = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
        values = settings.flat()
        row = {column: values[column] for column in columns}
        for moving in ("alpha", "student_fraction"):
            if values[f"{moving}_end"] is not None:
                row[moving] = f"{values[moving]} to {values[f'{moving}_end']}"
        place = ", ".join(f"{column} {value}" for column, value in row.items())
        table.add_row(name, f"{text.partition(' Deviates')[0]}\n[dim]{place}[/dim]")
    return table


def _functions() -> list[Table]:
    """What is one function in a table of rlgkd.ops."""
    from rlgkd.ops import behaviour_policy, divergence, returns

    tables = []
    known = {
        "divergences": divergence.DIVERGENCES,
        "advantages": returns.ADVANTAGES,
        "behaviours": behaviour_policy.BEHAVIOURS,
    }
    for kind, functions in known.items():
        tables.append(Table("name", "definition", title=kind))
        for name, function in functions.items():
            tables[-1].add_row(name, (function.__doc__ or "").splitlines()[0])
    return tables


def _rewards() -> Table:
    from rlgkd.envs.rewards.registry import plugin_rewards, shipped_rewards

    table = Table("reward", "what it is", title="rewards by name")
    for name, made in shipped_rewards().items():
        table.add_row(name, (made.__doc__ or "").splitlines()[0])
    for name, entry in plugin_rewards().items():
        table.add_row(name, entry.value)
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
    "divergences": lambda: _functions()[0],
    "advantages": lambda: _functions()[1],
    "behaviours": lambda: _functions()[2],
    "rewards": _rewards,
    "models": _models,
}
