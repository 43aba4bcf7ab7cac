"""Sends a run's model, its card and its report to the Hugging Face hub, or to a folder: `rlgkd push`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError, DataError, one_line
from rlgkd.scripts.report import card
from rlgkd.scripts.runs.folder import CONFIG, MODEL, REPORT, SUMMARY

WITH_THE_MODEL = (REPORT, SUMMARY, CONFIG)


def push(run: Path, repository: str, *, public: bool = False, message: str = "") -> str:
    """Send the model's folder with its card, report.html, summary.json and config.yaml; return where they are.

    Args:
        run: The folder of a run that has ended.
        repository: `owner/name` of the hub, made private if it is not there; or a folder that stands for one, which is
            a path that begins with `/`, `./`, `../` or `~`, or is there already. Files of other names in it stay.
        public: Make a repository that is not there yet public.
        message: Of the commit.

    Raises: CheckpointError if the run has no model, a link in the place of a file of it, or the folder cannot be
        written; DataError if the hub refuses.
    """
    if not (run / MODEL / "config.json").is_file():
        raise CheckpointError(
            "run", str(run), "give the folder of a run that has ended; it must hold model/config.json"
        )
    _check_links([run / MODEL, *(run / MODEL).rglob("*"), *(run / name for name in WITH_THE_MODEL)])
    if not (run / MODEL / card.CARD).is_file() and (run / SUMMARY).is_file():  # of an older version
        card.write_card(run)
    files = {str(path.relative_to(run / MODEL)): path for path in sorted((run / MODEL).rglob("*")) if path.is_file()}
    files |= {name: run / name for name in WITH_THE_MODEL if (run / name).is_file()}
    if repository.startswith(("/", "./", "../", "~")) or Path(repository).is_dir():
        return _copied(files, Path(repository).expanduser())
    return _uploaded(files, repository, public=public, message=message or f"{run.resolve().name}, trained by rlgkd")


def _check_links(paths: Iterable[Path]) -> None:
    """Raise CheckpointError for a link: what it leads to is not the run's, and need not be meant for others."""
    for path in paths:
        if path.is_symlink():
            raise CheckpointError("run", str(path), "it is a link; put the run's own in its place")


def _copied(files: dict[str, Path], folder: Path) -> str:
    with checkpoint.writing(folder):
        for name, source in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
            try:
                shutil.copyfile(source, temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    return str(folder)


def _uploaded(files: dict[str, Path], repository: str, *, public: bool, message: str) -> str:
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
