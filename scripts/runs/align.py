"""Writes the map from a teacher's tokens to its student's, where their tokenizers differ: `rlgkd align`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.errors import SettingError
from rlgkd.file_kinds import other_kind
from rlgkd.lm import load_tokenizer
from rlgkd.scripts._console import say
from rlgkd.teachers.map_file import make_map, map_to_bytes
from rlgkd.teachers.names import FILE_ENDING, is_teacher_file


def align(student: str, teacher: str, out: Path) -> None:
    """Make the map of two models' tokens, write it, and say what it covers.

    Args:
        student: A model's name; its tokenizer alone is opened.
        teacher: The same of the teacher.
        out: The file, which is replaced once the new one is whole.

    Raises: SettingError for a name that is no file's; ModelError for tokenizers between which there is no map.
    """
    if not is_teacher_file(str(out)):
        raise SettingError("out", str(out), f"name a file that ends with {FILE_ENDING}")
    if out.exists() and (kind := other_kind(out)):
        raise SettingError("out", str(out), f"it is {kind}; name a file")
    ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    map, coverage = make_map(ours, theirs, name=teacher)
    with checkpoint.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.atomic_write(out, map_to_bytes(map, ours, theirs))
    say(Console(), f"{coverage}; in {out}")
