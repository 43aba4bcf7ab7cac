"""The map from a teacher's tokens to its student's (rlgkd.ops.vocabulary_map): made from two tokenizers, and its file.

A file is safetensors, which `rlgkd align` writes, with E pairs of tokens:

    teacher_ids   int32 [E]   ascending
    student_ids   int32 [E]   the token to which each one's probability goes

Which tokenizers they are of is in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import DataError, ModelError, one_line
from rlgkd.file_kinds import check_file
from rlgkd.lm.text_format import end_token, special_tokens
from rlgkd.lm.token_bytes import token_bytes
from rlgkd.ops.vocabulary_map import VocabularyMap
from rlgkd.teachers.file_format import fingerprint

FORMAT = "rlgkd-map-1"
LEAST_SHARED = 0.1
"""Share of the smaller vocabulary that must be pieces of text of the other one too."""
AGAIN = "write it again with rlgkd align"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a map is made of, in tokens."""

    same: int
    """The teacher's tokens whose bytes, or whose name as a special token, the student has as a token."""
    first_piece: int
    """The teacher's tokens that go to the first of several tokens with which the student writes them."""
    unmapped: int
    """The teacher's special tokens that the student does not have."""
    reached: int
    """The student's tokens to which something goes."""
    student_size: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"of the teacher's tokens {self.same:,} are the student's too, {self.first_piece:,} go to the first token "
            f"with which the student writes them, {self.unmapped:,} go nowhere; {self.reached:,} of the student's "
            f"{self.student_size:,} are reached"
        )


def make_map(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, name: str = ""
) -> tuple[VocabularyMap, Coverage]:
    """Map each of the teacher's tokens to that of the student's with which its text begins.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's.
        name: The teacher's name, for messages.

    Raises:
        ModelError: A tokenizer whose tokens are no pieces of text, or two that share hardly any.
    """
    ours, theirs = token_bytes(student, field="student"), token_bytes(teacher, name=name)
    our_special, their_special = special_tokens(student), special_tokens(teacher)
    our_names, their_names = student.get_vocab(), {id_: token for token, id_ in teacher.get_vocab().items()}
    by_bytes: dict[bytes, int] = {}
    for id_, text in enumerate(ours):
        if text and id_ not in our_special:
            by_bytes.setdefault(text, id_)
    to: dict[int, int] = _special_pairs(student, teacher, our_special, their_special)
    several: list[int] = []
    for id_, text in enumerate(theirs):
        if id_ in their_special or not text:
            continue
        named = our_names.get(their_names.get(id_, ""), -1)  # of several tokens of the same bytes the one of its name
        if named >= 0 and ours[named] == text:
            to[id_] = named
        elif text in by_bytes:
            to[id_] = by_bytes[text]
        else:
            several.append(id_)
    same = len(to)
    if same < LEAST_SHARED * min(len(ours), len(theirs)):
        remedy = (
            f"only {same:,} of its {len(theirs):,} tokens are tokens of the student's {len(ours):,}: there is no map "
            "between the two; set teacher_tokens to spans, or give a teacher with a tokenizer more like the student's"
        )
        raise ModelError("teacher", name or teacher.name_or_path, remedy)
    to |= _first_pieces(student, ours, by_bytes, {id_: theirs[id_] for id_ in several})
    pairs = sorted(to.items())
    map = VocabularyMap(
        teacher_ids_E=torch.tensor([id_ for id_, _ in pairs]),
        student_ids_E=torch.tensor([id_ for _, id_ in pairs]),
        teacher_size=len(theirs),
        student_size=len(ours),
    )
    coverage = Coverage(
        same=same,
        first_piece=len(pairs) - same,
        unmapped=len(theirs) - len(pairs),
        reached=len(map.reached_M),
        student_size=len(ours),
    )
    return map, coverage


def with_ends(map: VocabularyMap, ends: Mapping[int, int]) -> VocabularyMap:
    """The map with the teacher's end tokens at the student's; `ends` are the student's -> the teacher's."""
    to = dict(zip(map.teacher_ids_E.tolist(), map.student_ids_E.tolist(), strict=True))
    for own, other in ends.items():
        to.setdefault(other, own)
    pairs = sorted(to.items())
    return VocabularyMap(
        teacher_ids_E=torch.tensor([id_ for id_, _ in pairs]),
        student_ids_E=torch.tensor([id_ for _, id_ in pairs]),
        teacher_size=map.teacher_size,
        student_size=map.student_size,
    )


def map_to_bytes(map: VocabularyMap, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> bytes:
    """The content of a map's file."""
    tensors: dict[str, Any] = {
        "teacher_ids": map.teacher_ids_E.numpy().astype(np.int32),
        "student_ids": map.student_ids_E.numpy().astype(np.int32),
    }
    of = {
        "student": fingerprint(student),
        "teacher": fingerprint(teacher),
        "student_size": map.student_size,
        "teacher_size": map.teacher_size,
    }
    return save(tensors, {"format": FORMAT, "contents": json.dumps(of)})


def read_map(path: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> VocabularyMap:
    """Read a file of `map_to_bytes`.

    Raises:
        DataError: A file that is missing, damaged, or of other tokenizers.
    """
    try:
        check_file(path)
        opener: Any = safe_open
        with opener(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("it is no file that rlgkd align has written")
            of = json.loads(metadata["contents"])
            ids = [file.get_tensor(name).astype(np.int64) for name in ("teacher_ids", "student_ids")]
        sizes = int(of["teacher_size"]), int(of["student_size"])
        _check_ids(ids, sizes)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DataError("teacher_map", path, f"it could not be read ({one_line(error, 200)}); {AGAIN}") from error
    for whose, tokenizer in (("student", student), ("teacher", teacher)):
        if of[whose] != fingerprint(tokenizer):
            raise DataError("teacher_map", path, f"it is of another {whose}'s tokenizer; {AGAIN}")
    return VocabularyMap(
        teacher_ids_E=torch.from_numpy(ids[0]),
        student_ids_E=torch.from_numpy(ids[1]),
        teacher_size=sizes[0],
        student_size=sizes[1],
    )


def _check_ids(ids: Sequence[np.ndarray], sizes: Sequence[int]) -> None:
    """Raise ValueError for ids that are no map."""
    teacher_E, student_E = ids
    if teacher_E.shape != student_E.shape or teacher_E.ndim != 1 or not len(teacher_E):
        raise ValueError(f"its ids have the shapes {teacher_E.shape} and {student_E.shape}")
    if (np.diff(teacher_E) <= 0).any() or any(
        part.min() < 0 or part.max() >= size for part, size in zip(ids, sizes, strict=True)
    ):
        raise ValueError("its ids are out of order or out of range")


def _special_pairs(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    ours: Mapping[int, str],
    theirs: Mapping[int, str],
) -> dict[int, int]:
    """The teacher's special tokens -> the student's of the same name, and the end of a text to the end of a text."""
    by_name = {text: id_ for id_, text in ours.items()}
    pairs = {id_: by_name[text] for id_, text in theirs.items() if text in by_name}
    pairs.setdefault(end_token(teacher), end_token(student))
    return pairs


def _first_pieces(
    student: PreTrainedTokenizerBase, ours: Sequence[bytes], by_bytes: Mapping[bytes, int], texts: Mapping[int, bytes]
) -> dict[int, int]:
    """Where tokens go that the student writes in several: to the first of them."""
    pairs: dict[int, int] = {}
    whole = {id_: text.decode() for id_, text in texts.items() if _is_utf8(text)}
    if whole:
        encoded = student(list(whole.values()), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for id_, ids in zip(whole, encoded, strict=True):
            if ids and texts[id_].startswith(ours[ids[0]]):
                pairs[id_] = ids[0]
    for id_ in texts.keys() - pairs.keys():  # halves of letters, and what a tokenizer changes at a text's begin
        text = texts[id_]
        found = next((by_bytes[text[:size]] for size in range(len(text), 0, -1) if text[:size] in by_bytes), None)
        if found is not None:
            pairs[id_] = found
    return pairs


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
