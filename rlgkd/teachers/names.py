"""Which names of teachers are those of servers, files and the student itself, and not of models."""

from __future__ import annotations

FILE_ENDING = ".safetensors"
"""How the name of a file that `rlgkd teach` has written ends."""
SELF = "self"
"""The student as it is when training begins, or an average of it (`teacher_decay`)."""


def is_self(teacher: object) -> bool:
    """Whether it is the student itself."""
    return isinstance(teacher, str) and teacher == SELF


def is_address(teacher: object) -> bool:
    """Whether it is the address of a server."""
    return isinstance(teacher, str) and teacher.startswith(("http://", "https://"))


def is_teacher_file(teacher: object) -> bool:
    """Whether it is the name of a file of a teacher's log-probabilities."""
    return isinstance(teacher, str) and teacher.endswith(FILE_ENDING)


def is_outside(teacher: object) -> bool:
    """Whether it is no model, and what is known of the teacher comes from elsewhere."""
    return is_address(teacher) or is_teacher_file(teacher)
