"""Files that are written whole or not at all: temporary names, flushes, renames, and leftovers of dead processes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlgkd.errors import CheckpointError, one_line
from rlgkd.file_kinds import check_file
from rlgkd.permissions import follow_umask

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)")


def remove_stale(parent: Path) -> None:
    """Delete the temporaries of dead processes in `parent`, and restore a checkpoint that one died while replacing."""
    for path, match in leftovers(parent):
        if match["kind"] == "old" and restore_replaced(path, match["name"]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader finds either the old content or the new, each whole.

    Raises:
        CheckpointError: The file could not be written; it still has its old content.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     atomic_write(Path(run) / "summary.json", '{"reward": 1.0}')
        ...     (Path(run) / "summary.json").read_text()
        '{"reward": 1.0}'
    """
    path = Path(path)
    temporary = temporary_name(path, "tmp")
    with writing(path):
        try:
            write(temporary, content)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def writing(path: Path, remedy: str = "free space, or write elsewhere") -> Iterator[None]:
    """Raise CheckpointError, with the reason and the remedy, if writing `path` fails."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = f"it was not written ({reason(error)}): {fitting(error, remedy)}"
        raise CheckpointError("file", str(path), text) from error


def write(path: Path, content: str | bytes | dict[str, Tensor]) -> None:
    """Write text, bytes or tensors and flush them to the disk."""
    if isinstance(content, dict):
        save_file(content, path)
        follow_umask([path])
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, folder: Path) -> None:
    """Rename a complete temporary to `folder`, whose old content is restored if that fails and deleted if not."""
    replaced = temporary_name(folder, "old")
    exists = folder.exists()
    if exists:
        folder.rename(replaced)
    try:
        temporary.rename(folder)
    except BaseException:
        if exists:
            replaced.rename(folder)
        raise
    sync(folder.parent)
    if exists:
        shutil.rmtree(replaced, ignore_errors=True)


def temporary_name(path: Path, kind: str) -> Path:
    """Return a path in the same folder, named after `path`, its kind (`tmp` or `old`) and this process."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


def leftovers(parent: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield temporaries whose writer is dead, or is this process, which writes nothing else at the same time."""
    for path in sorted(Path(parent).iterdir()) if Path(parent).is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match and (int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))):
            yield path, match


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process is another user's
        return True
    return True


def restore_replaced(replaced: Path, name: str) -> bool:
    """Rename a replaced checkpoint back to `name`, unless its successor has that name; return whether it was."""
    if replaced.with_name(name).exists():
        return False
    try:
        replaced.rename(replaced.with_name(name))
    except OSError:  # the reader may have no write permission
        return False
    return True


def reason(error: Exception) -> str:
    """Return the reason of a failed system call on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text)


def fitting(error: Exception, remedy: str) -> str:
    """Return the remedy with other words for `free space` if no full disk was the reason.

    Examples:
        >>> fitting(PermissionError(errno.EACCES, "Permission denied"), "free space, or write elsewhere")
        'make it writable, or write elsewhere'
    """
    words = {
        **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
        **dict.fromkeys(
            (errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR), "look at its path"
        ),
    }
    said = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has no number of its own
    number = int(said[1]) if said else getattr(error, "errno", 0)
    return remedy.replace("free space", words.get(number, "free space"))


def dump_json(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(value, indent=1) + "\n"


def read_json(path: Path) -> Any:
    """Return the JSON of a regular file."""
    check_file(path)
    return json.loads(path.read_bytes())
