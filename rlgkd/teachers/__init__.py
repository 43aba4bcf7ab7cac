"""Teachers of which this process has no logits: what is known of them is asked for, text by text.

A teacher that is a model in this process gives states, and its head is fused with the loss (rlgkd.lm.fused_loss). Any
other one is an `OutsideTeacher`: a server, or a file. Whatever it is, `submit` takes finished texts and gives an answer
for each, which holds the log-probabilities of the teacher's top k tokens and of what was written; `TeacherOutputs` of
rlgkd.lm.fused_loss is where both kinds meet. A model in this process whose tokens are not the student's is an
`AlignedTeacher`.
"""

from rlgkd.teachers.aligned import AlignedTeacher, AlignedText
from rlgkd.teachers.known_text import KnownText, collate
from rlgkd.teachers.outside import (
    Answer,
    OutsideTeacher,
    Teacher,
    cancelled_on_error,
    has_failed,
    model_of,
)

__all__ = [
    "AlignedTeacher",
    "AlignedText",
    "Answer",
    "KnownText",
    "OutsideTeacher",
    "Teacher",
    "cancelled_on_error",
    "collate",
    "has_failed",
    "model_of",
]
