"""Files that are written whole or not at all: temporary names, flushes, renames, and what dead processes leave."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rlgkd.errors import CheckpointError, one_line

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)")


def remove_stale(parent: Path) -> None:
    """Delete the temporaries that dead processes left in `parent`, and put back what one died while replacing."""
    for path, match in leftovers(parent):
        if match["kind"] == "old" and put_back(path, match["name"]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader finds the old content or the new, whole, and never a part.

    Raises:
        CheckpointError: It could not be written; the old content is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     atomic_write(Path(run) / "summary.json", '{"reward": 1.0}')
        ...     (Path(run) / "summary.json").read_text()
        '{"reward": 1.0}'
    """
    path = Path(path)
    temporary = beside(path, "tmp")
    try:
        try:
            write(temporary, content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        remedy = f"it was not written ({reason(error)}): free space, or write elsewhere"
        raise CheckpointError("file", str(path), remedy) from error


def write(path: Path, content: str | bytes | dict[str, Tensor]) -> None:
    """Write text, bytes or tensors and flush them to the disk."""
    if isinstance(content, dict):
        save_file(content, path)
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves 0600, whatever the umask
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, folder: Path) -> None:
    """Give a complete temporary its name. What bore it steps aside first, and returns if anything fails."""
    aside = beside(folder, "old")
    replaced = folder.exists()
    if replaced:
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except BaseException:
        if replaced:
            aside.rename(folder)
        raise
    sync(folder.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def beside(path: Path, kind: str) -> Path:
    """A name next to `path` that says what it is for (`tmp` or `old`) and whose it is."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


def leftovers(parent: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Temporaries whose writer is dead, or this process: nothing else writes while it asks."""
    for path in sorted(Path(parent).iterdir()) if Path(parent).is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match and (int(match["pid"]) == os.getpid() or not _alive(int(match["pid"]))):
            yield path, match


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def put_back(aside: Path, name: str) -> bool:
    """Return an aside checkpoint to its name, unless its successor took it."""
    if aside.with_name(name).exists():
        return False
    try:
        aside.rename(aside.with_name(name))
    except OSError:  # a reader without the right to write
        return False
    return True


def reason(error: Exception) -> str:
    """Why the system refused, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text)


def dump_json(value: Any) -> str:
    """JSON that a person can read."""
    return json.dumps(value, indent=1) + "\n"


def read_json(path: Path) -> Any:
    """What the file holds."""
    return json.loads(path.read_bytes())
