"""Where the texts of an update come from: the student, student and teacher together, references, or the teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlgkd.dialogue import stops_of
from rlgkd.errors import DataError, SettingError
from rlgkd.lm.generate import CoSampler, OnStep
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.behaviour_policy import get as get_behaviour
from rlgkd.rollout import references, rollout, written
from rlgkd.types import Item, Source, Task, Trajectory

OFF_POLICY = ("references", "teacher")


class Sources:
    """The student's texts and those it is shown instead."""

    def __init__(
        self,
        student: LanguageModel,
        teacher: LanguageModel | None,
        task: Task,
        *,
        seed: int,
        off_policy: str = "references",
        teacher_texts: str | None = None,
        behaviour: str | None = None,
        teacher_share: float | None = None,
        kept_top_k: int | None = None,
    ) -> None:
        """Take the models, and the settings as the agents' constructor has them.

        Raises: SettingError for an unknown name, a setting that is not taken, or a teacher that is missing.
        """
        if off_policy not in OFF_POLICY:
            raise SettingError("off_policy", off_policy, f"choose one of {', '.join(OFF_POLICY)}")
        if teacher_texts is not None and off_policy != "teacher":
            raise SettingError("teacher_texts", teacher_texts, "nothing is drawn for it; set off_policy to teacher")
        for field, writer in (("off_policy", off_policy), ("behaviour", behaviour)):
            if teacher is None and writer not in ("references", None):
                raise SettingError(field, writer, "give a teacher, who writes these texts")
        self.student, self.teacher, self.task, self.seed, self.off_policy = student, teacher, task, seed, off_policy
        self.co_sampler = None
        settings = {"teacher_share": teacher_share, "kept_top_k": kept_top_k}
        given = {name: value for name, value in settings.items() if value is not None}
        if behaviour is None:
            for name, value in given.items():
                raise SettingError(name, value, "set the behaviour that takes it, or leave it out")
        elif teacher is not None:
            self.co_sampler = CoSampler(teacher, get_behaviour(behaviour, **given))
        self.texts = None
        if teacher_texts is not None:
            self.texts = TeacherTexts(Path(teacher_texts), self._about_teacher())

    def own(self, items: Sequence[Item], places: Sequence[int], group: int, on_step: OnStep) -> list[Trajectory]:
        """The student's texts, `group` for each item, or those of student and teacher together."""
        source = Source.STUDENT if self.co_sampler is None else Source.MIXED
        return rollout(
            self.student, self.task, items, group=group, seed=self.seed, places=places, on_step=on_step, source=source,
            co_sampler=self.co_sampler,
        )  # fmt: skip

    def given(self, items: Sequence[Item], places: Sequence[int], copies: int = 1) -> list[Trajectory]:
        """Texts that are not the student's: for each item one, as often as it shall count.

        A teacher without `teacher_texts` writes anew each time an item comes round, and so many different ones.
        """
        if self.off_policy == "teacher" and self.teacher is not None and self.texts is None:
            return rollout(
                self.teacher, self.task, items, group=copies, seed=self.seed, places=places, source=Source.TEACHER
            )
        items = [item for item in items for _ in range(copies)]
        if self.texts is None:
            return references(self.student, self.task, items)
        ids = self.texts.of([item.key for item in items], lambda rows: self._draw([items[row] for row in rows]))
        return written(self.student, self.task, items, ids, source=Source.TEACHER)

    def _draw(self, items: Sequence[Item]) -> list[list[int]]:
        assert self.teacher is not None
        drawn = rollout(self.teacher, self.task, items, seed=self.seed, source=Source.TEACHER)
        return [t.tokens_T[t.action_mask_T].tolist() for t in drawn]

    def _about_teacher(self) -> dict[str, Any]:
        assert self.teacher is not None
        stops = stops_of(self.task)
        weights = hashlib.sha256()
        for parameter in self.teacher.module.parameters():
            weights.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {
            "teacher": weights.hexdigest(), "temperature": self.teacher.temperature, "task": self.task.name,
            "max_prompt_tokens": self.task.max_prompt_tokens, "max_new_tokens": self.task.max_new_tokens,
            "seed": self.seed, **({"stop": list(stops.strings)} if stops else {}),
        }  # fmt: skip


class TeacherTexts:
    """Texts that a teacher has written, in a file: each is drawn when it is first asked for, and then kept.

    The file's first line says what they are texts of; each other line is one item's key and token ids.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Open or begin the file.

        Raises: DataError if it holds texts of something else, or a line that is no such text.
        """
        self.path, self.ids = path, dict[str, list[int]]()
        if not path.exists() or not path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about) + "\n")
            return
        first, *lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # whoever wrote it was stopped in the middle of a line
            path.write_text(first + "".join(lines[:-1]))
            lines = lines[:-1]
        try:
            found = json.loads(first)
            self.ids = {entry["key"]: list(map(int, entry["ids"])) for entry in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "teacher_texts", str(path), f"it has a line that is no text ({error}); delete it"
            ) from error
        if found != about:
            other = next(name for name in {**about, **found} if found.get(name) != about.get(name))
            remedy = (
                f"its texts have {other} {found.get(other)!r}, these would have {about.get(other)!r}; name another file"
            )
            raise DataError("teacher_texts", str(path), remedy)

    def of(self, keys: Sequence[str], draw: Callable[[list[int]], list[list[int]]]) -> list[list[int]]:
        """The ids for each key; `draw` writes those of the numbers it is given, which are then in the file too."""
        missing = [n for n, key in enumerate(keys) if key not in self.ids and key not in keys[:n]]
        if missing:
            fresh = dict(zip((keys[n] for n in missing), draw(missing), strict=True))
            with self.path.open("a") as file:
                file.writelines(json.dumps({"key": key, "ids": ids}) + "\n" for key, ids in fresh.items())
            self.ids |= fresh
        return [self.ids[key] for key in keys]
