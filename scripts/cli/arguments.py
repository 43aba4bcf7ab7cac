"""Arguments that several commands share, and how a recipe, a file and `key=value` are separated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

RecipeArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [FILE.yaml] [key=value ...]", help="Each over the one before; see `rlgkd list recipes`."
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many of the likeliest tokens alone.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this mass alone.")]
MinP = Annotated[float | None, typer.Option(help="Sample from tokens of this share of the likeliest's probability.")]
SamplingSeed = Annotated[int, typer.Option(min=0, help="Seed of the samples.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a live one.")]


def split_name(arguments: Sequence[str] | None, default: str) -> tuple[str, Sequence[str]]:
    """Separate the optional name in front from the `key=value` arguments after it."""
    given = arguments or []
    if given and "=" not in given[0]:
        return given[0], given[1:]
    return default, given


def split_names(arguments: Sequence[str] | None, default: str) -> tuple[str, str, Sequence[str]]:
    """Separate the recipe under a file, the file or recipe, and the `key=value` arguments after them.

    Where none is named and an environment is, the run is called after that and not after the default.

    Examples:
        >>> split_names(["env=rlgkd/Arithmetic-v0"], "quickstart")
        ('', 'quickstart', ['name=Arithmetic-v0', 'env=rlgkd/Arithmetic-v0'])
    """
    name, rest = split_name(arguments, default)
    file, overrides = split_file(rest)
    env = next((one.removeprefix("env=") for one in overrides if one.startswith("env=")), "")
    if rest is arguments and env:
        overrides = [f"name={env.rpartition('/')[2]}", *overrides]
    return (name, file, overrides) if file else ("", name, overrides)


def split_file(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Separate the optional YAML file in front from the `key=value` arguments after it."""
    is_file = bool(arguments) and "=" not in arguments[0] and arguments[0].endswith((".yaml", ".yml"))
    return (arguments[0], arguments[1:]) if is_file else ("", arguments)
