"""A teacher that is a file: the log-probabilities of texts which it has seen before, and these texts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import DataError, SettingError, one_line
from rlgkd.file_kinds import check_file
from rlgkd.teachers.file_format import CHECKS, SAID, TENSORS, Contents, check_of, fingerprint, key_of
from rlgkd.teachers.known_text import KnownText
from rlgkd.teachers.outside import Answer
from rlgkd.types import Episode

AGAIN = "write it again with rlgkd teach"


class FileTeacher:
    """An `OutsideTeacher` from a file that `rlgkd teach` has written (rlgkd.teachers.file_format)."""

    takes_any_text = False

    def __init__(self, path: str, tokenizer: PreTrainedTokenizerBase, *, top_k: int | None = None) -> None:
        """Open the file; the log-probabilities stay on the disk until they are asked for.

        Args:
            path: The file.
            tokenizer: The student's.
            top_k: How many tokens at each action are to be known; None is as many as there are.

        Raises: DataError for a file that is missing, damaged or of another tokenizer; SettingError for more tokens than
            it has.
        """
        self.name, self._vocabulary = path, len(tokenizer)
        try:
            check_file(path)
            opener: Any = safe_open
            self._file = opener(path, framework="numpy")
            self.contents = Contents.from_metadata(self._file.metadata())
            keys, self._offsets, self._token_offsets = (
                self._file.get_tensor(name) for name in ("keys", "offsets", "token_offsets")
            )
            self._rows = {key.tobytes(): row for row, key in enumerate(keys)}
            self._checks = self._file.get_tensor(CHECKS) if CHECKS in self._file.keys() else None  # noqa: SIM118
            self._check_shapes()
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            raise DataError("teacher", path, f"it could not be read ({one_line(error, 200)}); {AGAIN}") from error
        if self.contents.tokenizer != fingerprint(tokenizer):
            raise DataError("teacher", path, f"its ids are of another tokenizer than the student's; {AGAIN}")
        has = self._slices["logp"].get_shape()[1]
        if top_k is not None and top_k > has:
            raise SettingError("teacher_top_k", top_k, f"{path} has the top {has} of each token; set it to {has}")
        self.top_k = has

    def submit(self, episodes: Sequence[Episode]) -> list[Answer]:
        """Look texts up; every answer is there at once.

        Raises: DataError for a text that the file does not have.
        """
        answers: list[Answer] = []
        for episode in episodes:
            row = self._rows.get(key_of(episode.tokens_T, episode.action_mask_T))
            if row is None:
                whose = "teacher's text" if self.contents.texts == "teacher" else "reference"
                remedy = f"it does not have the {whose} of {episode.item.key!r} as it is tokenised here; {AGAIN}"
                raise DataError("teacher", self.name, f"{remedy}, for all prompts and with this environment's settings")
            answer: Answer = Future()
            answer.set_result(self._known_text(row, episode.length))
            answers.append(answer)
        return answers

    def resolve(self) -> None:
        """Nothing is pending."""

    def cancel(self) -> None:
        """Nothing is pending."""

    def ids_after(self, prompt: Sequence[int]) -> list[int]:
        """The actions of the file's text after a prompt.

        Raises: DataError if it has none.
        """
        row = self._rows_by_prompt.get(np.array(prompt, dtype=np.int32).tobytes())
        if row is None:
            raise DataError("teacher", self.name, f"it has no text after a prompt of {len(prompt)} tokens; {AGAIN}")
        tokens_T, actions_T = self._text(row)
        ids: list[int] = tokens_T[actions_T].tolist()
        return ids

    @cached_property
    def _rows_by_prompt(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for row in range(len(self._rows)):
            tokens_T, actions_T = self._text(row)
            found.setdefault(tokens_T[: int(actions_T.argmax())].tobytes(), row)
        return found

    @cached_property
    def _slices(self) -> dict[str, Any]:
        return {name: self._file.get_slice(name) for name in TENSORS}

    def _text(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = self._token_offsets[row : row + 2].tolist()
        return self._slices["tokens"][start:end], self._slices["actions"][start:end].astype(bool)

    def _known_text(self, row: int, length: int) -> KnownText:
        start, end = self._offsets[row : row + 2].tolist()
        part = {name: self._slices[name][start:end] for name in SAID}
        whole = self._checks is None or self._checks[row].tobytes() == check_of(part)
        ids_LK = part.pop("ids")
        numbers = all(bool((values <= 0).all()) for values in part.values())  # NaN is not
        if end - start != length or not whole or not numbers or not ((ids_LK >= 0) & (ids_LK < self._vocabulary)).all():
            raise DataError("teacher", self.name, f"its log-probabilities are damaged; {AGAIN}")
        return KnownText(
            logp_LK=part["logp"].astype(np.float32),
            ids_LK=ids_LK.astype(np.int64),
            rest_L=part["rest"].astype(np.float32),
            token_logp_L=part["token_logp"].astype(np.float32),
        )

    def _check_shapes(self) -> None:
        """Raise ValueError for tensors that do not fit each other."""
        shapes = {name: self._slices[name].get_shape() for name in TENSORS}
        texts, actions, tokens = len(self._rows), int(self._offsets[-1]), int(self._token_offsets[-1])
        k = shapes["logp"][-1]
        expected = {
            "keys": [texts, 16],
            "tokens": [tokens],
            "actions": [tokens],
            "token_offsets": [texts + 1],
            "logp": [actions, k],
            "ids": [actions, k],
            "rest": [actions],
            "token_logp": [actions],
            "offsets": [texts + 1],
        }
        if self._checks is not None and self._checks.shape != (texts, 16):
            raise ValueError(f"its {CHECKS} has the shape {list(self._checks.shape)}, not {[texts, 16]}")
        if wrong := [name for name in TENSORS if shapes[name] != expected[name]]:
            raise ValueError(f"its {wrong[0]} has the shape {shapes[wrong[0]]}, not {expected[wrong[0]]}")
