"""A teacher with another tokenizer than its student: what it says of a text is brought to the student's tokens.

The teacher reads an item's prompt in its own format and tokens, and each turn of the student's as it would write the
same bytes itself. What the chat templates put around turns is an action of neither; the token that ends a turn
counts as the teacher's own end. The two tokenisations are cut into spans where both end at the same byte
(rlgkd.ops.byte_spans), turn by turn. Then either the log-ratio of each span is what the sampled estimators see
(`KnownSpans`), or the teacher's distribution, at each of the student's tokens that begins where one of the teacher's
does, goes through a map of the vocabularies (`MappedStates`), and any divergence is formed with it.

Not here: teachers with the student's tokenizer, which need none of this (rlgkd.lm.own_format).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from torch import Tensor

from rlgkd.devices import to_device
from rlgkd.errors import DataError
from rlgkd.lm.fused_loss import MappedStates, fused_logp
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.token_bytes import pieces_of, plain_ids
from rlgkd.ops.byte_spans import KnownSpans, cut_spans, known_spans
from rlgkd.ops.vocabulary_map import VocabularyMap
from rlgkd.types import Batch, Episode, PromptFormat

Ids = np.ndarray


@dataclass(frozen=True, kw_only=True)
class AlignedText:
    """One text as both models read it, L actions of the student's and M of the teacher's."""

    episode: Episode
    """As the teacher reads it; its log-probabilities and entropies are 0."""
    span_L: Ids
    """The number of each action's span, from 0."""
    other_span_M: Ids
    """The same of the teacher's actions."""
    start_L: Ids
    """The teacher's action that begins at the same byte; -1 if there is none."""

    @property
    def starts(self) -> int:
        """The student's actions that begin where one of the teacher's does."""
        return int((self.start_L >= 0).sum())

    @property
    def single(self) -> int:
        """The student's actions that are a span of one token of either side."""
        return int(((np.bincount(self.span_L) == 1) & (np.bincount(self.other_span_M) == 1)).sum())


@dataclass(frozen=True, kw_only=True)
class AlignedTeacher:
    """A model in this process whose tokens are aligned with its student's."""

    name: str
    lm: LanguageModel
    """The teacher, with its whole vocabulary."""
    form: PromptFormat | None
    """How it reads prompts and replies; None: as the student does, in the student's tokens."""
    same_tokens: bool
    """Whether its tokens are the student's all the same."""
    student_texts: Sequence[bytes]
    """The bytes of each of the student's tokens."""
    teacher_texts: Sequence[bytes]
    """Those of its own."""
    ends: Mapping[int, int]
    """The student's end tokens -> the teacher's."""
    special: Mapping[int, int]
    """The student's special tokens -> the teacher's of the same name."""
    map: VocabularyMap | None = None
    """The map of its vocabulary to the student's; None sees the written tokens alone."""

    def read(self, episodes: Sequence[Episode]) -> list[AlignedText]:
        """The texts as the teacher reads them, aligned.

        Raises: DataError for a text that does not fit the teacher's context.
        """
        return [self._read(episode) for episode in episodes]

    def outputs(
        self, texts: Sequence[AlignedText], states_MH: Tensor, teacher_batch: Batch, student_logp_N: Tensor
    ) -> KnownSpans | MappedStates:
        """What the teacher says at the student's N actions of some texts.

        Args:
            texts: The texts.
            states_MH: The teacher's states at its actions, in the order of the texts.
            teacher_batch: The texts as it reads them.
            student_logp_N: Log-probabilities with which the student sampled its actions, in nats.
        """
        device = student_logp_N.device
        first_action = np.cumsum([0, *(len(text.other_span_M) for text in texts)])
        if self.map is not None:
            start_N = np.concatenate(
                [
                    np.where(text.start_L < 0, -1, text.start_L + first)
                    for text, first in zip(texts, first_action[:-1], strict=True)
                ]
            )
            index_N = to_device(np.maximum(start_N, 0), states_MH.device)
            known_N = to_device(start_N >= 0, device)
            return MappedStates(lm=self.lm, states_NH=states_MH[index_N], known_N=known_N, map=self.map.to(device))
        logp_M = fused_logp(self.lm, states_MH, self.lm.actions(teacher_batch)).to(device)
        first_span = np.cumsum([0, *(int(text.span_L.max()) + 1 for text in texts)])
        span_N, span_M = (
            to_device(
                np.concatenate([part + first for part, first in zip(parts, first_span[:-1], strict=True)]), device
            )
            for parts in ([text.span_L for text in texts], [text.other_span_M for text in texts])
        )
        return known_spans(logp_M, span_M, student_logp_N, span_N, int(first_span[-1]))

    def _read(self, episode: Episode) -> AlignedText:
        actions, tokens = episode.action_mask_T.tolist(), episode.tokens_T.tolist()
        start = actions.index(True)
        ids = tokens[:start] if self.form is None else self.form.encode_prompt(episode.item)
        are_actions = [False] * len(ids)
        found = _Alignment()
        replies = iter(episode.turns[1::2])
        closed = False
        for is_action, run in groupby(zip(actions[start:], tokens[start:], strict=True), key=itemgetter(0)):
            part = [token for _, token in run]
            if is_action:
                closed = part[-1] in self.ends  # else the reply has to close the turn, in the teacher's own way
                part = [id_ for segment in self._segments(part) for id_ in found.add(*segment)]
            elif self.form is not None:
                assert self.form.encode_reply is not None, "its tokens are others, so replies are written again"
                part = self.form.encode_reply(next(replies), closed)
            ids += part
            are_actions += [is_action] * len(part)
        if len(ids) > self.lm.context:
            remedy = (
                f"as the teacher reads it, its episode has {len(ids)} tokens, too many for its context of "
                f"{self.lm.context}; shorten it, or lower max_new_tokens"
            )
            raise DataError("prompt", episode.item.key, remedy)
        zeros_T = np.zeros(len(ids), dtype=episode.logp_T.dtype)
        read = dataclasses.replace(
            episode,
            tokens_T=np.array(ids, dtype=episode.tokens_T.dtype),
            action_mask_T=np.array(are_actions),
            logp_T=zeros_T,
            entropy_T=zeros_T,
        )
        return AlignedText(
            episode=read,
            span_L=np.concatenate(found.spans),
            other_span_M=np.concatenate(found.other_spans),
            start_L=np.concatenate(found.starts),
        )

    def _segments(self, ids: Sequence[int]) -> Iterator[tuple[list[int], Ids, Ids]]:
        """Cut a turn at its special tokens: the teacher's ids of each segment, and the spans of both sides in it."""
        special = {**self.special, **({ids[-1]: self.ends[ids[-1]]} if ids[-1] in self.ends else {})}
        alone = np.zeros(1, dtype=np.int64)
        for is_special, run in groupby(ids, key=special.__contains__):
            part = list(run)
            if is_special:
                for id_ in part:
                    yield [special[id_]], alone, alone
            elif self.same_tokens:
                sizes = [len(self.student_texts[id_]) for id_ in part]
                yield part, *cut_spans(sizes, sizes)
            else:
                yield self._retokenised(part)

    def _retokenised(self, ids: Sequence[int]) -> tuple[list[int], Ids, Ids]:
        """A segment of text in the teacher's tokens."""
        text, sizes = as_text([self.student_texts[id_] for id_ in ids])
        pieces = pieces_of(self.lm.tokenizer, self.teacher_texts, text)
        if text and pieces is not None:
            return pieces[0], *cut_spans(sizes, pieces[1])
        # A letter that the teacher's tokenizer writes as another one: what it makes of the segment is one span. What
        # it does not see at all it reads as a letter that means nothing.
        other = plain_ids(self.lm.tokenizer, text) or plain_ids(self.lm.tokenizer, "\ufffd")
        return other, np.zeros(len(ids), dtype=np.int64), np.zeros(len(other), dtype=np.int64)


class _Alignment:
    """The spans of a text's segments, numbered one after the other."""

    def __init__(self) -> None:
        self.spans: list[Ids] = []
        self.other_spans: list[Ids] = []
        self.starts: list[Ids] = []
        self._span = self._action = 0

    def add(self, other_ids: list[int], span_L: Ids, other_span_M: Ids) -> list[int]:
        """Add a segment; returns the teacher's ids of it."""
        first_L = np.diff(span_L, prepend=-1) > 0
        start_L = np.where(first_L, np.searchsorted(other_span_M, span_L) + self._action, -1)
        self.spans.append(span_L + self._span)
        self.other_spans.append(other_span_M + self._span)
        self.starts.append(start_L)
        self._span += int(span_L.max()) + 1
        self._action += len(other_ids)
        return other_ids


def as_text(pieces: Sequence[bytes]) -> tuple[str, list[int]]:
    r"""The text of some bytes, and how many of its bytes each piece has.

    What is no UTF-8 becomes U+FFFD, three bytes, as a tokenizer that decodes them shows it.

    Examples:
        >>> as_text([b"a", b"\xe4", b"\xbd\xa0b", b"\xff"])
        ('a\u4f60b\ufffd', [1, 1, 3, 3])
    """
    raw = b"".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    text, begin, new_end = "", 0, np.arange(len(raw) + 1)
    while True:
        try:
            text += raw[begin:].decode()
            break
        except UnicodeDecodeError as error:
            text += raw[begin : begin + error.start].decode() + "\ufffd"
            bad = range(begin + error.start, begin + error.end)
            new_end[bad.stop :] += 3 - len(bad)  # what ends within stays within
            begin = bad.stop
    return text, np.diff(new_end[ends], prepend=0).tolist()
