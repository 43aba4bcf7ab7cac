"""The one place where an error that the user can fix becomes one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rlgkd.errors import ProcessError, RewardError, RlgkdError, SettingError
from rlgkd.scripts._console import print_nowhere

OF_THE_SYSTEM = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""Reasons of a failed system call that are no bug: permissions, disks, limits."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with `rlgkd: field: value does not work; remedy` for an RlgkdError; any other error keeps its traceback.

    An error of a file for which the system gives a reason, such as missing permissions or a full disk, is one line too.
    Of several processes the one that failed says so, and which it is. Ctrl-C exits with 130, as the shell expects of a
    command that SIGINT ended.
    """
    try:
        yield
    except RlgkdError as error:
        if not (isinstance(error, ProcessError) and error.reported):
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            print(f"rlgkd: {error}{notes}{_traceback_note(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not _has_working_folder():
            ours = RlgkdError("folder", os.curdir, "the working folder is gone; go to one that is there")
        elif error.errno not in OF_THE_SYSTEM:
            raise
        elif error.filename is None:  # a stream: files are opened by their name
            print_nowhere(1)  # else Python complains again when it flushes at its end
            ours = RlgkdError("output", os.strerror(error.errno), "it could not be written; look at where it goes")
        else:
            remedy = f"{error.strerror}: see its permissions, its name and its disk"
            ours = RlgkdError("file", str(error.filename), remedy)
        print(f"rlgkd: {ours}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rlgkd: stopped", file=sys.stderr)
        sys.exit(130)
    except SystemExit as left:
        if isinstance(getattr(left.__context__, "__cause__", None), KeyboardInterrupt):  # Typer exits without a word
            print("rlgkd: stopped", file=sys.stderr)
        raise


def check_one_process(command: str) -> None:
    """Refuse to run a command, which starts processes of its own or needs one, as several processes of a job.

    Raises: SettingError in the first process; the others exit after it.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is not None and size not in ("0", "1"):
        if rank != "0":
            time.sleep(60)  # torchrun ends the others once one has left, and the first must speak before it is ended
            sys.exit(2)
        raise SettingError("processes", size, f"{command} is one process; start it without torchrun (docs/scale.md)")


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _traceback_note(error: RlgkdError) -> str:
    """Write the traceback of a failed reward function to a file and name it; empty for other errors."""
    # A reward is the user's own code: the one line says what failed, but only the traceback says where.
    if not isinstance(error, RewardError) or error.__cause__ is None:
        return ""
    with tempfile.NamedTemporaryFile(
        "w", prefix="rlgkd-reward-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        traceback.print_exception(error.__cause__, file=file)
    return f"; its traceback: {file.name}"
