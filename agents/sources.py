"""Where the texts of an update come from: the student, student and teacher together, references, or the teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.agents.agent_settings import SamplingSettings
from rlgkd.checkpoint import GrowingFile, atomic_write, writing
from rlgkd.dialogue import end_ids_of, stop_strings
from rlgkd.errors import DataError, one_line
from rlgkd.file_kinds import other_kind
from rlgkd.item_checks import MAX_CHECKED
from rlgkd.lm.copies import weights_digest
from rlgkd.lm.generate import CoSampler, OnStep
from rlgkd.lm.model import LanguageModel
from rlgkd.ranks import ALONE, Ranks
from rlgkd.rollout import reference_episodes, replay_episodes, sample_episodes
from rlgkd.teachers import RoutedTeachers, Teacher
from rlgkd.teachers.from_file import FileTeacher
from rlgkd.types import Episode, Item, Source, Task

CHECKED_AT_ONCE = 64
"""Texts that are looked up together before training."""


class Sources:
    """On-policy and off-policy texts of the items of an update."""

    def __init__(
        self,
        student: LanguageModel,
        teacher: Teacher | None,
        task: Task,
        *,
        seed: int,
        sampling: SamplingSettings,
        ranks: Ranks = ALONE,
    ) -> None:
        """Take the models, the settings, whose need of a teacher has been checked, and the processes of the job.

        Raises: DataError for a file of teacher's texts that holds something else.
        """
        self.student, self.teacher, self.task, self.seed = student, teacher, task, seed
        self.off_policy_source = sampling.off_policy
        self.co_sampler = None
        if sampling.behaviour is not None and isinstance(teacher, LanguageModel):
            self.co_sampler = CoSampler(teacher, sampling.behaviour.function)
        self.teacher_texts = None
        if sampling.teacher_texts is not None:
            self.teacher_texts = TeacherTexts(
                Path(sampling.teacher_texts), self._teacher_fingerprint(), ranks, vocabulary=student.vocabulary
            )

    @property
    def writers(self) -> list[LanguageModel]:
        """The models in this process that generate texts."""
        teacher = self.teacher if isinstance(self.teacher, LanguageModel) else None
        writes = self.co_sampler is not None or self.off_policy_source == "teacher"
        return [self.student, *([teacher] if teacher is not None and writes else [])]

    def on_policy(
        self, items: Sequence[Item], stream_indices: Sequence[int], group: int, on_step: OnStep
    ) -> list[Episode]:
        """Sample `group` texts for each item, from the student or from student and teacher together."""
        return sample_episodes(
            self.student,
            self.task,
            items,
            group=group,
            seed=self.seed,
            stream_indices=stream_indices,
            on_step=on_step,
            source=Source.STUDENT if self.co_sampler is None else Source.MIXED,
            co_sampler=self.co_sampler,
        )

    def off_policy(self, items: Sequence[Item], stream_indices: Sequence[int], copies: int = 1) -> list[Episode]:
        """One text for each item from the references, the teacher or its file, `copies` times.

        A teacher without `teacher_texts` generates again each time an item comes, and so many different texts.
        """
        teacher = self.teacher
        if self.off_policy_source == "teacher" and self.teacher_texts is None and isinstance(teacher, LanguageModel):
            return sample_episodes(
                teacher,
                self.task,
                items,
                group=copies,
                seed=self.seed,
                stream_indices=stream_indices,
                source=Source.TEACHER,
            )
        if self.off_policy_source == "teacher" and isinstance(teacher, RoutedTeachers):
            return self._from_each(teacher, items, stream_indices, copies)
        items = [item for item in items for _ in range(copies)]
        if self.off_policy_source == "teacher" and isinstance(teacher, FileTeacher):
            given = [teacher.ids_after(self.task.encode_prompt(item)) for item in items]
            ends = frozenset(teacher.contents.end_ids)
            return replay_episodes(self.student, self.task, items, given, source=Source.TEACHER, end_ids=ends)
        if self.teacher_texts is None:
            return reference_episodes(self.student, self.task, items)
        ids = self.teacher_texts.ids_for(
            [item.key for item in items], lambda rows: self._draw([items[r] for r in rows])
        )
        assert isinstance(teacher, LanguageModel)
        return replay_episodes(self.student, self.task, items, ids, source=Source.TEACHER, end_ids=teacher.end_ids)

    def _from_each(
        self, teachers: RoutedTeachers, items: Sequence[Item], stream_indices: Sequence[int], copies: int
    ) -> list[Episode]:
        """Texts that each item's own teacher generates, in the order of the items."""
        found: dict[int, list[Episode]] = {}
        for lm, rows in teachers.parts(items):
            texts = sample_episodes(
                lm,
                self.task,
                [items[row] for row in rows],
                group=copies,
                seed=self.seed,
                stream_indices=[stream_indices[row] for row in rows],
                source=Source.TEACHER,
            )
            found |= {row: texts[n * copies : (n + 1) * copies] for n, row in enumerate(rows)}
        return [text for row in range(len(items)) for text in found[row]]

    def check_file(self, split: str, train_prompts: int | None) -> None:
        """Check before training that a teacher's file has all texts that will be asked for.

        Of items without end, and of more than `MAX_CHECKED`, those of the first batch are checked.

        Raises: DataError for the first text that it lacks.
        """
        if not isinstance(self.teacher, FileTeacher):
            return
        number = train_prompts or self.task.size(split)
        for start in range(0, number if number <= MAX_CHECKED else CHECKED_AT_ONCE, CHECKED_AT_ONCE):
            indices = range(start, min(start + CHECKED_AT_ONCE, number))
            self.teacher.submit(self.off_policy([self.task.item(split, self.seed, n) for n in indices], indices))

    def take_drawn(self) -> dict[str, list[int]]:
        """Texts of the teacher that this process has drawn since the last call, and that are to be kept."""
        return {} if self.teacher_texts is None else self.teacher_texts.take_drawn()

    def keep(self, texts: Mapping[str, list[int]]) -> None:
        """Keep texts of the teacher that another process has drawn."""
        if self.teacher_texts is not None:
            self.teacher_texts.keep(texts)

    def _draw(self, items: Sequence[Item]) -> list[list[int]]:
        assert isinstance(self.teacher, LanguageModel)
        episodes = sample_episodes(self.teacher, self.task, items, seed=self.seed, source=Source.TEACHER)
        return [episode.tokens_T[episode.action_mask_T].tolist() for episode in episodes]

    def _teacher_fingerprint(self) -> dict[str, Any]:
        """What a file of the teacher's texts is valid for."""
        assert isinstance(self.teacher, LanguageModel)
        stops = stop_strings(self.task)
        end_ids = end_ids_of(self.task, self.teacher.end_ids)
        template = "" if self.teacher.format is None else self.teacher.format.template
        # What is usual (no stop string, one end token, ...) is left out, so that older files stay valid.
        return {
            "teacher": weights_digest(self.teacher.module),
            "temperature": self.teacher.temperature,
            **(
                {"vocabulary": self.teacher.vocabulary} if self.teacher.vocabulary < len(self.teacher.tokenizer) else {}
            ),
            "task": self.task.name,
            "max_prompt_tokens": self.task.max_prompt_tokens,
            "max_new_tokens": self.task.max_new_tokens,
            "seed": self.seed,
            **({"stop": list(stops.strings)} if stops else {}),
            **({"format": self.teacher.format.own_example} if self.teacher.format else {}),
            **({"teacher_prompt": template} if template else {}),
            **({"end_ids": sorted(end_ids)} if len(end_ids) > 1 else {}),
        }


class TeacherTexts:
    """Texts of a teacher in a file: each is drawn when it is first needed, and then kept.

    The file's first line says what the texts are valid for; each other line is one item's key and token ids. Of several
    processes each draws what it needs, and the main one alone reads and writes the file.
    """

    def __init__(
        self, path: Path, fingerprint: dict[str, Any], ranks: Ranks = ALONE, *, vocabulary: int | None = None
    ) -> None:
        """Open or begin the file, whose ids are below `vocabulary` if that is given.

        Raises: DataError if it holds texts of something else, or a line that is not such a text; ProcessError on ranks
        other than the main one.
        """
        self.path, self.ranks, self.vocabulary = path, ranks, vocabulary
        self.drawn: dict[str, list[int]] = {}
        """What this process has drawn and the others do not know yet."""
        self.ids: dict[str, list[int]] = ranks.from_main(lambda: self._open(fingerprint))

    def _open(self, fingerprint: dict[str, Any]) -> dict[str, list[int]]:
        """Read the texts, or begin the file."""
        path = self.path
        try:
            path.stat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DataError(
                "teacher_texts", str(path), f"it cannot be read ({error.strerror}); name another file"
            ) from error
        if path.exists() and (kind := other_kind(path)):
            raise DataError("teacher_texts", str(path), f"it is {kind}; name a file")
        if not path.exists() or not path.stat().st_size:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(fingerprint) + "\n")
            return {}
        first, *lines = path.read_text(errors="replace").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # the process was stopped in the middle of a line
            atomic_write(path, first + "".join(lines[:-1]))
            lines = lines[:-1]
        try:
            found = dict(json.loads(first))
            ids = dict(map(self._text, lines))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            remedy = f"it has a line that is no text ({error}); delete it"
            raise DataError("teacher_texts", str(path), remedy) from error
        if found != fingerprint:
            names = {**fingerprint, **found}
            other = next(name for name in names if found.get(name) != fingerprint.get(name))
            theirs, ours = found.get(other), fingerprint.get(other)
            remedy = f"its texts have {other} {theirs!r}, these would have {ours!r}; name another file"
            raise DataError("teacher_texts", str(path), remedy)
        return ids

    def _text(self, line: str) -> tuple[str, list[int]]:
        """Key and token ids of a line.

        Raises: ValueError, KeyError or TypeError for a line that is no text.
        """
        entry = json.loads(line)
        key, ids = entry["key"], entry["ids"]
        if not isinstance(key, str) or not isinstance(ids, list) or not ids:
            raise ValueError(f"{one_line(line, 80)!r} is no key with its ids")
        for token in ids:
            if type(token) is not int or token < 0 or (self.vocabulary is not None and token >= self.vocabulary):
                raise ValueError(f"{key!r} has the id {token!r}, which is no token of the student")
        return key, ids

    def ids_for(self, keys: Sequence[str], draw: Callable[[list[int]], list[list[int]]]) -> list[list[int]]:
        """The ids for each key; `draw` generates those at the indices it is given, which are then kept in the file."""
        missing = [n for n, key in enumerate(keys) if key not in self.ids and key not in keys[:n]]
        if missing:
            fresh = dict(zip((keys[n] for n in missing), draw(missing), strict=True))
            self.drawn |= fresh
            self.keep(fresh)
        return [self.ids[key] for key in keys]

    def keep(self, texts: Mapping[str, list[int]]) -> None:
        """Keep texts that this process or another one has drawn."""
        new = {key: ids for key, ids in texts.items() if key not in self.ids}
        if new and self.ranks.main:
            with GrowingFile(self.path) as file:
                for key, ids in new.items():
                    file.write(json.dumps({"key": key, "ids": ids}) + "\n")
        self.ids |= new

    def take_drawn(self) -> dict[str, list[int]]:
        """What this process has drawn since the last call."""
        drawn, self.drawn = self.drawn, {}
        return drawn
