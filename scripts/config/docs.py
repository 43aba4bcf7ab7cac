"""Writes what is declared in code to where it is read: docs/settings.md, agents/_signature.py, scripts/catalogue.json.

`python -m rlgkd.scripts.config.docs`; tests hold the three to what the code says. Nothing is written down here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.signature import typed_dicts
from rlgkd.scripts.config.catalogue import Setting, environment_settings, environments, everything, run_settings
from rlgkd.scripts.config.run import AgentName, config_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("docs") / "settings.md"
SIGNATURE = Path("agents") / "_signature.py"
CATALOGUE = Path("scripts") / "catalogue.json"
"""What `rlgkd list` prints, so that it need not import what it lists."""
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


def catalogue() -> str:
    """scripts/catalogue.json."""
    lines = [f"{json.dumps(kind)}: [\n{_rows(rows)}\n]" for kind, rows in everything().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(rows: list[Setting]) -> str:
    """A row in each line, for readable differences."""
    return ",\n".join(json.dumps([*row], ensure_ascii=False) for row in rows)


def _code(settings: list[Setting]) -> list[Setting]:
    return [Setting(f"`{s.name}`", s.default, s.about) for s in settings]


def _table(first: str, second: str, rows: list[Setting]) -> list[str]:
    lines = [(first, second, "what it is"), ("---",) * 3, *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


if __name__ == "__main__":
    import rlgkd  # noqa: F401 - registers the environments

    (ROOT / PAGE).write_text(page())
    (ROOT / SIGNATURE).write_text(signature())
    (ROOT / CATALOGUE).write_text(catalogue())
