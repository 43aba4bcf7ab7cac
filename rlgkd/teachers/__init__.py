"""Teachers that are several, and those of which this process has no logits, which are asked for text by text.

A teacher that is a model in this process gives states, and its head is fused with the loss (rlgkd.lm.fused_loss). Of
several, each text may have its own (`RoutedTeachers`), or all are one (rlgkd.lm.mixture). One whose tokens are not the
student's is an `AlignedTeacher`. Any other is an `OutsideTeacher`: a server, or a file. `submit` takes finished texts
and gives an answer for each, which holds the log-probabilities of the teacher's top k tokens and of what was written;
`TeacherOutputs` of rlgkd.lm.fused_loss is where all kinds meet.
"""

from rlgkd.teachers.aligned import AlignedTeacher, AlignedText
from rlgkd.teachers.known_text import KnownText, collate
from rlgkd.teachers.outside import (
    Answer,
    ModelTeacher,
    OutsideTeacher,
    Teacher,
    cancelled_on_error,
    has_failed,
    in_process,
    model_of,
)
from rlgkd.teachers.routed import RoutedTeachers

__all__ = [
    "AlignedTeacher",
    "AlignedText",
    "Answer",
    "KnownText",
    "ModelTeacher",
    "OutsideTeacher",
    "RoutedTeachers",
    "Teacher",
    "cancelled_on_error",
    "collate",
    "has_failed",
    "in_process",
    "model_of",
]
