"""The stages of a run: each with its own settings of the objective, until so many tokens, or a measure rises no more.

    stages:
      - {alpha: 1, until: 0.5}                              # a share of the run's tokens, or their number
      - {alpha: 0.5, divergence: jsd(0.9), until: plateau(truth, 3)}
      - {alpha: 0}                                          # to the run's end

Each is put over the run's own settings, as a file is over a recipe. What a stage may set is what an agent may change
while it trains (`rlgkd.agents.config.CHANGEABLE`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlgkd.agents.config import CHANGEABLE, AlgorithmConfig
from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.settings import layered

PATIENCE = 3
"""Evaluations that `plateau(MEASURE)` waits for."""
OWN = ("name", "until")
"""What a stage has besides settings."""
_PLATEAU = re.compile(r"plateau\(\s*([^\s,()]+)\s*(?:,\s*([1-9]\d*)\s*)?\)")


@dataclass(frozen=True)
class Plateau:
    """A measure that rises no more."""

    measure: str
    """As `keep_best` names one."""
    patience: int
    """Evaluations in a row that are no better."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage."""

    name: str
    """`alpha=1`, if it was given none."""
    end: int
    """Tokens of the run at which it ends at the latest."""
    plateau: Plateau | None
    algorithm: AlgorithmConfig


def stages_of(
    given: Sequence[Mapping[str, Any]],
    algorithm: AlgorithmConfig,
    *,
    tokens: int,
    evaluates: bool,
    of_run: Collection[str] = (),
) -> tuple[Stage, ...]:
    """The stages of a run of so many tokens with these settings, which evaluates on the way or not.

    `of_run` are the names of settings that are not the agent's but the run's.

    Raises: SettingError, which names the stage, for a setting that is unknown, out of range, or cannot change, and for
    an `until` that never comes or cannot be known.
    """
    found: list[Stage] = []
    for number, values in enumerate(given, start=1):
        where = f"stages[{number}]"
        end, plateau = _until(values.get("until"), f"{where}.until", tokens=tokens, last=number == len(given))
        begins = found[-1].end if found and found[-1].plateau is None else 0
        if end <= begins or (end >= tokens and plateau is None and number < len(given)):
            remedy = f"it is reached between {begins:,} and {tokens:,} tokens; give a number between them"
            raise SettingError(f"{where}.until", values.get("until"), remedy)
        if plateau is not None and not evaluates:
            raise SettingError(f"{where}.until", values["until"], "set eval_every, the tokens between evaluations")
        settings = {name: value for name, value in values.items() if name not in OWN}
        stage = Stage(
            name=str(values.get("name") or stage_name(settings) or f"stage {number}"),
            end=end,
            plateau=plateau,
            algorithm=_algorithm(settings, algorithm, where, of_run),
        )
        if number < len(given) and end >= tokens:
            _check_constant(stage.algorithm, where)
        found.append(stage)
    return tuple(found)


def check_heard(stages: Any, given: Mapping[str, Any]) -> None:
    """Refuse a setting that was given for the whole run where each stage has its own.

    Raises: SettingError.
    """
    listed = stages if isinstance(stages, list | tuple) else ()  # anything else is refused where it is read
    named = [stage for stage in listed if isinstance(stage, Mapping)]
    for name, value in given.items():
        if named and all(name in stage for stage in named):
            raise SettingError(name, value, "each stage of the run sets it, so it had no effect; give stages")


def stage_name(settings: Mapping[str, Any]) -> str:
    """Name a stage by its settings.

    Examples:
        >>> stage_name({"alpha": 1, "divergence": "forward_kl"})
        'alpha=1 divergence=forward_kl'
    """
    return " ".join(f"{name}={value}" for name, value in settings.items() if name not in OWN)


def _until(until: Any, field: str, *, tokens: int, last: bool) -> tuple[int, Plateau | None]:
    """The tokens at which a stage ends at the latest, and the measure by which it may end before."""
    if until is None:
        if not last:
            raise SettingError(field, None, "say when the stage ends: tokens, a share of them, or plateau(MEASURE, 3)")
        return tokens, None
    end, plateau = tokens, None
    for part in until if isinstance(until, list | tuple) else [until]:
        match = _PLATEAU.fullmatch(part) if isinstance(part, str) else None
        if match is not None and plateau is None:
            plateau = Plateau(measure=match[1], patience=int(match[2] or PATIENCE))
        elif isinstance(part, float) and 0 < part < 1:
            end = min(end, round(part * tokens))
        elif isinstance(part, int) and not isinstance(part, bool) and part >= 1:
            end = min(end, part)
        else:
            remedy = "give tokens of the run, a share of them between 0 and 1, plateau(MEASURE, 3), or a list of two"
            raise SettingError(field, part, remedy)
    if last and end < tokens:
        raise SettingError(field, until, "the last stage goes on to the run's end; lower tokens, or leave it out")
    return end, plateau


def _algorithm(
    settings: Mapping[str, Any], algorithm: AlgorithmConfig, where: str, of_run: Collection[str]
) -> AlgorithmConfig:
    """The agent's settings with the stage's over them."""
    kind = type(algorithm)
    for name, value in settings.items():
        if name not in kind.declared() and name not in of_run:
            raise SettingError(f"{where}.{name}", value, unknown_remedy(str(name), sorted(CHANGEABLE | {*OWN})))
        if name not in CHANGEABLE:
            raise SettingError(f"{where}.{name}", value, "it is one for the whole run; set it outside of the stages")
    try:
        return kind(**layered(kind, algorithm.flat(), settings))
    except SettingError as error:
        raise SettingError(f"{where}.{error.field}", error.value, error.remedy) from error


def _check_constant(algorithm: AlgorithmConfig, where: str) -> None:
    """Refuse a schedule whose end cannot be known."""
    flat = algorithm.flat()
    for name in ("alpha_end", "student_fraction_end"):
        if flat.get(name) is not None:
            remedy = "when the stage ends is not known; give until a number of tokens as well, as a list"
            raise SettingError(f"{where}.{name}", flat[name], remedy)
