"""Pages of the site that are made from elsewhere: the README, recipes, registered environments, and the API.

mkdocs calls `on_config`, `on_files` and `on_page_markdown` (mkdocs.yml). Links that leave docs/, which a reader of the
repository follows, become links to pages of the site; a source file is shown as one.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File

import rlgkd  # noqa: F401 - registers the environments
from rlgkd.envs.sb3 import make_sb3_vec_env
from rlgkd.errors import RlgkdError
from rlgkd.scripts.config import catalogue
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.config.recipes import RECIPES, recipe_names
from rlgkd.scripts.config.run import RunConfig

ROOT = Path(__file__).resolve().parent.parent
PROJECT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository's root and their pages."""
API = {
    "Agents": "rlgkd.agents",
    "Environments": "rlgkd.envs",
    "Objective": "rlgkd.objective",
    "Divergences": "rlgkd.ops.divergence",
    "Gates": "rlgkd.ops.gate",
    "Policy losses": "rlgkd.ops.policy_loss",
    "Returns": "rlgkd.ops.returns",
    "Rollouts": "rlgkd.rollout",
    "Evaluation": "rlgkd.evaluation",
    "Cutting": "rlgkd.cutting",
    "Statistics": "rlgkd.statistics",
    "Models": "rlgkd.lm",
    "Ranks": "rlgkd.ranks",
    "Types": "rlgkd.types",
    "Errors": "rlgkd.errors",
}
TOGETHER = re.compile(r"(?<=\d)%? (?:±|to) (?=[-+]?\d)|(?<=\)) (?=\*)")
"""What holds a value, its interval and its stars together: there no line of a table is to break."""
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Fill the generated parts of the navigation."""
    pages = {
        "Recipes": [f"recipes/{name}.md" for name in recipe_names()],
        "Tasks": [_env_page(name) for name in _environments()],
        "API": [{title: f"api/{module}.md"} for title, module in API.items()],
    }
    config.nav = [
        {title: pages[title]} if isinstance(part, dict) and (title := next(iter(part))) in pages else part
        for part in config.nav
    ]
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are made."""
    made = {page: (ROOT / source).read_text() for source, page in PROJECT_PAGES.items()}
    made |= {f"recipes/{name}.md": _recipe(name) for name in recipe_names()}
    made |= {_env_page(name): _environment(name, takes, about) for name, (takes, about) in _environments().items()}
    made |= {f"api/{module}.md": f"# {title}\n\n::: {module}\n" for title, module in API.items()}
    written = {file.src_uri: Path(file.abs_src_path).read_text() for file in files.documentation_pages()}
    to_read = {**written, **made}
    while to_read:
        page, text = to_read.popitem()
        for target, _ in LINK.findall(text):
            path = _in_repository(_origin(page), target)
            if not path or not (ROOT / path).is_file() or path.startswith("docs/") or path in PROJECT_PAGES:
                continue
            shown = _source_page(path)
            if shown in made or files.get_file_from_path(shown):
                continue
            if shown.endswith(".md"):
                made[shown] = _source(path)
                if path.endswith(".md"):
                    to_read[shown] = made[shown]
            else:
                files.append(File.generated(config, shown, abs_src_path=str(ROOT / path)))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links go to pages of the site, and intervals in tables stay in one line."""
    here = page.file.src_uri

    def linked(match: re.Match[str]) -> str:
        path = _in_repository(_origin(here), match[1])
        if path is None:
            return match[0]
        if path in PROJECT_PAGES:
            target = PROJECT_PAGES[path]
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/")
        elif (ROOT / path).is_file():
            target = _source_page(path)
        else:
            return match[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{match[2] or ''})"

    lines = [
        TOGETHER.sub(lambda found: found[0].replace(" ", "&nbsp;"), line) if line.startswith("|") else line
        for line in LINK.sub(linked, markdown).split("\n")
    ]
    return "\n".join(lines)


def _origin(page: str) -> str:
    """The file of the repository that a page is made of, from whose folder its links go."""
    if page.startswith("source/"):
        return page.removeprefix("source/").removesuffix(".md")
    return next((source for source, made in PROJECT_PAGES.items() if made == page), f"docs/{page}")


def _in_repository(origin: str, target: str) -> str | None:
    """The path from the root of what a file links to; None for an address."""
    if "://" in target or target.startswith("mailto:"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _source_page(path: str) -> str:
    """Where a file of the repository is shown; a picture or a notebook is there as it is."""
    return f"source/{path}" if path.endswith((".png", ".ipynb")) else f"source/{path}.md"


def _source(path: str) -> str:
    language = {".py": "python", ".yaml": "yaml"}.get(os.path.splitext(path)[1], "text")
    text = (ROOT / path).read_text()
    return text if path.endswith(".md") else f"# `{path}`\n\n````{language}\n{text}\n````\n"


def _recipe(name: str) -> str:
    """What it is, how it is run, what it sets, and the file."""
    text = (RECIPES / f"{name}.yaml").read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    values = yaml.safe_load(text)
    about = {setting.name: setting for setting in catalogue.run_settings()}
    rows = [
        f"| `{key}` | {catalogue.plain(value)} | {about[key].default if key in about else ''} |"
        for key, value in values.items()
        if key != "name"
    ]
    settings: RunConfig = read(name)
    return "\n".join(
        [
            f"# {name}",
            "",
            comment,
            "",
            f"    rlgkd train {name}",
            "",
            f"It trains `{settings.agent}` on [`{settings.env}`](../{_env_page(settings.env)}).",
            "",
            "| setting | here | default |",
            "| --- | --- | --- |",
            *rows,
            "",
            "## The file",
            "",
            f"```yaml\n{text}```",
            "",
        ]
    )


def _environments() -> dict[str, tuple[str, str]]:
    found = catalogue.environments()
    return {name: (takes, about) for name, takes, about in found if name.startswith("rlgkd/")}


def _env_page(name: str) -> str:
    return f"tasks/{name.removeprefix('rlgkd/')}.md"


def _environment(name: str, takes: str, about: str) -> str:
    """What it is, its settings, how it is made, and its first prompts."""
    made = ["```py", "import gymnasium as gym", "import rlgkd", "", f'env = gym.make("{name}")', "```", ""]
    lines = [f"# {name.removeprefix('rlgkd/')}", "", about, "", f"Settings: {takes}.", "", *made]
    try:
        task = make_sb3_vec_env(name).task
    except (RlgkdError, TypeError) as error:
        return "\n".join([*lines, f"It wants settings: {error}.", ""])
    limits = f"A prompt has at most {task.max_prompt_tokens} tokens, a text {task.max_new_tokens}."
    lines += [limits, "", "## Prompts", ""]
    for index in range(2):
        item = task.item("train", 0, index)
        lines += ["````text", str(item.prompt), "````", ""]
        if item.reference:
            lines += ["Reference:", "", "````text", str(item.reference), "````", ""]
    return "\n".join(lines)
