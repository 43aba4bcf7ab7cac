"""Which files a run was made from, by hash: its data and its code, as summary.json and the model card say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlgkd.scripts.config.run import RunConfig

OF_FILES = ("data", "reward", "quality", "tools")
"""Settings of an environment that may name files."""


def input_files(settings: RunConfig) -> list[dict[str, str]]:
    """Return setting, name and SHA-256 of each file of data or code that the environment's settings name.

    Of a folder it is the hash of its files' names and hashes. What is not on this machine's disk, such as a data set of
    the hub, is named without one.
    """
    found = []
    for setting in OF_FILES:
        for name in dict.fromkeys(_names(settings.env_settings.get(setting))):
            path = Path(name.rpartition(":")[0] if ".py:" in name else name)
            shown = f"{path.name}{name[len(str(path)) :]}" if path.is_absolute() else name
            found.append({"setting": setting, "name": shown, **({"sha256": digest(path)} if path.exists() else {})})
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files by name.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_text("abc")
        ...     digest(Path(folder) / "a.txt")[:16]
        'ba7816bf8f01cfea'
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        parts = "".join(f"{file.relative_to(path).as_posix()} {digest(file)}\n" for file in files)
        return hashlib.sha256(parts.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(value: Any) -> Iterator[str]:
    """The texts in a setting that name data or code: file, `file.py:function`, or a name of the hub."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if "name" not in value or key == "name":
                yield from _names(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _names(one)
