"""The interface of a teacher whose weights are not in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

from typing_extensions import TypeIs

from rlgkd.lm.mixture import ModelMixture
from rlgkd.lm.model import LanguageModel
from rlgkd.teachers.aligned import AlignedTeacher
from rlgkd.teachers.known_text import KnownText
from rlgkd.teachers.routed import RoutedTeachers
from rlgkd.types import Episode

Answer = Future[KnownText]
"""What a teacher knows of one text, once it is there; the exception of one that failed says why."""


class OutsideTeacher(Protocol):
    """A teacher that is asked for the log-probabilities of texts."""

    name: str
    """For messages, without secrets."""
    top_k: int
    """Tokens whose log-probabilities it gives at each action; 0 is the written one alone."""
    takes_any_text: bool
    """Whether it can be asked for any text, and not only for those that it has seen before."""

    def submit(self, episodes: Sequence[Episode]) -> list[Answer]:
        """Ask for texts, without waiting; returns an answer for each.

        Raises: DataError for a text that it has not seen, if it does not take any.
        """
        ...

    def resolve(self) -> None:
        """Wait until all that was submitted is answered, and count what failed.

        Raises: TeacherError if too many texts have failed; ModelError if it is another model than it was.
        """
        ...

    def cancel(self) -> None:
        """Abandon what is pending; its answers have failed."""
        ...


ModelTeacher = LanguageModel | ModelMixture | RoutedTeachers
"""Models in this process with their student's tokens: one, several as one, or one for each text."""
Teacher = ModelTeacher | AlignedTeacher | OutsideTeacher
"""Models in this process, with their student's tokens or with others, or a teacher that is elsewhere."""


def in_process(teacher: object) -> TypeIs[ModelTeacher | AlignedTeacher]:
    """Whether it is made of models in this process."""
    return isinstance(teacher, LanguageModel | ModelMixture | RoutedTeachers | AlignedTeacher)


def model_of(teacher: Teacher | None) -> ModelTeacher | None:
    """The teacher's model or models, if they are in this process."""
    if isinstance(teacher, AlignedTeacher):
        return teacher.lm
    return teacher if isinstance(teacher, LanguageModel | ModelMixture | RoutedTeachers) else None


def has_failed(answer: Answer) -> bool:
    """Whether it is there, and has failed; one that is pending has not."""
    return answer.done() and answer.exception() is not None


@contextmanager
def cancelled_on_error(teacher: Teacher | None) -> Iterator[None]:
    """Abandon what is pending of a teacher if the block raises."""
    try:
        yield
    except BaseException:
        if teacher is not None and not in_process(teacher):
            teacher.cancel()
        raise
