"""Sends a run's model, its card and its report to the Hugging Face hub, or to a folder: `rlgkd push`.

Where files were on this machine is nobody else's business: an absolute path among the settings is sent as its last
parts, `./data.jsonl`, which is looked up next to the config.yaml that names it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from markupsafe import escape

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError, DataError, one_line
from rlgkd.scripts._yaml import dump_yaml, load_yaml
from rlgkd.scripts.config.paths import absolute_paths
from rlgkd.scripts.report import card
from rlgkd.scripts.report.run_files import RunFiles, read_run
from rlgkd.scripts.runs.folder import BEST, CONFIG, MODEL, REPORT, SUMMARY

WITH_THE_MODEL = (REPORT, SUMMARY, CONFIG)
TEXTS = (".html", ".json", ".md", ".yaml")
"""Endings of files that may name paths."""
Content = Path | bytes
"""A file as it is, or what is sent in its place."""


def push(run: Path, repository: str, *, public: bool = False, message: str = "") -> str:
    """Send the model's folder with its card, report.html, summary.json and config.yaml; return where they are.

    Args:
        run: The folder of a run that has ended.
        repository: `owner/name` of the hub, made private if it is not there; or a folder that stands for one, which is
            a path that begins with `/`, `./`, `../` or `~`, or is there already. Files of other names in it stay.
        public: Make a repository that is not there yet public.
        message: The commit's.

    Raises: CheckpointError if the run has no model, settings or summary that can be read, a link in the place of a file
        of it, or the folder cannot be written; DataError if the hub refuses.
    """
    if not repository:
        raise DataError("repository", repository, "give owner/name of the hub, or a folder: ./shared/mine")
    if not (run / MODEL / "config.json").is_file():
        raise CheckpointError(
            "run", str(run), "give the folder of a run that has ended; it must hold model/config.json"
        )
    _check_links([run / MODEL, *(run / MODEL).rglob("*"), *(run / name for name in WITH_THE_MODEL)])
    about = read_run(run)
    for name, content in ((CONFIG, about.config), (SUMMARY, about.summary)):
        if not content:  # without the settings nobody knows which paths are this machine's
            remedy = "it is missing or cannot be read; put the run's own in its place"
            raise CheckpointError("run", str(run / name), remedy)
    if not (run / MODEL / card.CARD).is_file() and (run / SUMMARY).is_file():  # of an older version
        card.write_card(run)
    files = {str(path.relative_to(run / MODEL)): path for path in sorted((run / MODEL).rglob("*")) if path.is_file()}
    files |= {name: run / name for name in WITH_THE_MODEL if (run / name).is_file()}
    shorter = _shorter(about)
    contents = {name: shorter(path) for name, path in files.items()}
    if repository.startswith(("/", "./", "../", "~")) or Path(repository).is_dir():
        return _copied(contents, Path(repository).expanduser())
    return _uploaded(contents, repository, public=public, message=message or f"{run.resolve().name}, trained by rlgkd")


def _check_links(paths: Iterable[Path]) -> None:
    """Raise CheckpointError for a link: what it leads to is not the run's, and need not be meant for others."""
    for path in paths:
        if path.is_symlink():
            raise CheckpointError("run", str(path), "it is a link; put the run's own in its place")


def _shorter(files: RunFiles) -> Callable[[Path], Content]:
    """How a file of the run is sent: without the absolute paths that its settings, now or before, hold."""
    paths = dict.fromkeys(absolute_paths([files.config, files.summary.get("changes")]))
    names = _last_parts([*paths])
    if not names:
        return lambda path: path
    old = files.config_text
    new = dump_yaml(_replaced_in(load_yaml(old), names)) if files.config else old

    def content(path: Path) -> Content:
        if path.suffix not in TEXTS or path.name == "tokenizer.json":
            return path
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            return path
        for before, after in ((old, new), (str(escape(old)), str(escape(new)))):  # YAML may fold or escape a path
            text = text.replace(before.rstrip(), after.rstrip()) if before.strip() else text
        return str(_replaced_in(text, names)).encode()

    return content


def _last_parts(paths: Sequence[str]) -> dict[str, str]:
    """Each path with what is sent for it: `./` and its last parts, by which it differs from the others.

    Examples:
        >>> _last_parts(["/home/me/data.jsonl", "/home/me/a/model", "/home/me/b/model"])
        {'/home/me/data.jsonl': './data.jsonl', '/home/me/a/model': './a/model', '/home/me/b/model': './b/model'}
    """

    def last(path: str, number: int) -> tuple[str, ...]:
        return Path(path).parts[1:][-number:]

    found = {}
    for path in paths:
        number = 2 if Path(path).name in (MODEL, BEST) else 1  # of runs, whose names say more
        others = [other for other in paths if Path(other) != Path(path)]
        while any(last(other, number) == last(path, number) for other in others):
            number += 1
        found[path] = "/".join((".", *last(path, number)))
    return found


def _replaced_in(value: object, names: dict[str, str]) -> object:
    """Texts with other names for these paths, the longest first, also as JSON writes them."""
    if isinstance(value, dict):
        return {key: _replaced_in(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced_in(inner, names) for inner in value]
    if not isinstance(value, str):
        return value
    for path in sorted(names, key=len, reverse=True):
        for written, name in zip(_forms(path), _forms(names[path]), strict=True):
            pieces = re.split(rf"(?<![\w.~-]){re.escape(written)}(?![\w-]|\.\w)", value)
            value = name.join(pieces)
    return value


def _forms(text: str) -> tuple[str, str, str]:
    """A text as it is, and as JSON and HTML write it."""
    return text, json.dumps(text)[1:-1], str(escape(text))


def _copied(files: dict[str, Content], folder: Path) -> str:
    with checkpoint.writing(folder):
        for name, source in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
            try:
                if isinstance(source, Path):
                    shutil.copyfile(source, temporary)
                else:
                    temporary.write_bytes(source)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    return str(folder)


def _uploaded(files: dict[str, Content], repository: str, *, public: bool, message: str) -> str:
    from httpx2 import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    try:
        name = api.create_repo(repository, private=not public, exist_ok=True).repo_id
        return api.create_commit(name, operations, commit_message=message).commit_url
    except (HTTPError, HFValidationError, OSError, ValueError) as error:
        remedy = (
            f"the hub did not take it: {one_line(error, 300)}; `hf auth login`, or HF_TOKEN with the right to write"
        )
        raise DataError("repository", repository, remedy) from error
