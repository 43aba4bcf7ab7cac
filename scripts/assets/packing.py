"""What the embedded models learn from: passages, each with several sentences that do not see one another.

A row is a passage and its sentences side by side. Each sentence takes the positions right behind the passage and
attends to the passage and to itself, so that it is read as if it stood there alone, and one reading of the passage
(most of a row) serves all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlgkd.envs.tasks.grounded.env import prompt_of
from rlgkd.envs.tasks.grounded.oracle import first_error
from rlgkd.envs.tasks.grounded.pairs import Pair, pair
from rlgkd.envs.tasks.grounded.world import story, summarise, vocabulary

Drawn = TypeVar("Drawn")
Row = tuple[list[int], list[list[int]]]
"""Tokens of a passage, and of each of its sentences, which end with the end token."""
PASSAGES_AHEAD = 8
"""Batches that are drawn at a time, so that rows of like length can share one."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows in one rectangle, right-padded."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor
    """Added to attention scores: 0 where a token may look, -inf where not (a padded token sees itself)."""
    passage_BT: Tensor
    """True at the tokens of the passages."""
    passage_S: Tensor
    """Of each sentence: the length of its passage, in tokens."""
    row_S: Tensor
    begin_S: Tensor
    end_S: Tensor
    """Of each sentence: its row, its first column, the one past its end token."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """As a Hugging Face model takes them."""
        return {
            "input_ids": self.ids_BT, "position_ids": self.positions_BT, "attention_mask": self.mask_B1TT
        }  # fmt: skip

    def tokens_of(self, chosen_S: Tensor) -> Tokens:
        """All tokens of the chosen sentences."""
        rows, columns, before = [], [], []
        for s in chosen_S.nonzero()[:, 0].tolist():
            begin, end = int(self.begin_S[s]), int(self.end_S[s])
            rows.append(self.row_S[s].expand(end - begin))
            columns.append(torch.arange(begin, end))
            before.append(torch.cat([self.passage_S[s, None] - 1, torch.arange(begin, end - 1)]))
        return Tokens(row_N=torch.cat(rows), column_N=torch.cat(columns), before_N=torch.cat(before))

    def beside(self, tokens: Tokens, ids_N: Tensor) -> tuple[Packed, Tokens]:
        """For each of the tokens another one that could stand in its place, in a column of its own.

        It sees what that token sees; no other token sees it.
        """
        (size, width), counts = self.ids_BT.shape, torch.bincount(tokens.row_N, minlength=len(self.ids_BT))
        order = tokens.row_N.argsort(stable=True)
        column_N = torch.empty_like(order)
        column_N[order] = width + torch.cat([torch.arange(n) for n in counts.tolist()])
        wide = width + int(counts.max())
        pad_ids_BT, pad_positions_BT = self.ids_BT.new_zeros(size, wide), self.ids_BT.new_zeros(size, wide)
        pad_passage_BT = self.passage_BT.new_zeros(size, wide)
        pad_passage_BT[:, :width] = self.passage_BT
        mask_BTT = torch.full((size, wide, wide), float("-inf"))
        pad_ids_BT[:, :width], pad_positions_BT[:, :width] = self.ids_BT, self.positions_BT
        mask_BTT[:, :width, :width] = self.mask_B1TT[:, 0]
        pad_ids_BT[tokens.row_N, column_N] = ids_N
        pad_positions_BT[tokens.row_N, column_N] = self.positions_BT[tokens.row_N, tokens.column_N]
        mask_BTT[tokens.row_N, column_N] = mask_BTT[tokens.row_N, tokens.column_N]
        mask_BTT[tokens.row_N, column_N, tokens.column_N] = float("-inf")
        mask_BTT.diagonal(dim1=1, dim2=2).zero_()
        packed = replace(
            self, ids_BT=pad_ids_BT, positions_BT=pad_positions_BT, mask_B1TT=mask_BTT[:, None],
            passage_BT=pad_passage_BT,
        )  # fmt: skip
        return packed, replace(tokens, column_N=column_N)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Some tokens of a rectangle."""

    row_N: Tensor
    column_N: Tensor
    before_N: Tensor
    """The column whose state predicts the token."""

    def where(self, chosen_N: Tensor) -> Tokens:
        """Some of them."""
        return Tokens(**{name: column_N[chosen_N] for name, column_N in vars(self).items()})

    def ids(self, packed: Packed) -> Tensor:
        """What they are."""
        return packed.ids_BT[self.row_N, self.column_N]


def pack(rows: Sequence[Row], *, pad: int) -> Packed:
    """Lay out rows of passages and sentences."""
    shape = (len(rows), max(len(passage) + sum(map(len, sentences)) for passage, sentences in rows))
    ids_BT, positions_BT = np.full(shape, pad), np.zeros(shape, np.int64)
    owner_BT = np.full(shape, -1)  # 0 the passage, then 1, 2, ... the sentences
    spans = []
    for row, (passage, sentences) in enumerate(rows):
        begin = 0
        for owner, tokens in enumerate([passage, *sentences]):
            end = begin + len(tokens)
            ids_BT[row, begin:end], owner_BT[row, begin:end] = tokens, owner
            start = len(passage) if owner else 0
            positions_BT[row, begin:end] = np.arange(start, start + len(tokens))
            if owner:
                spans.append((len(passage), row, begin, end))
            begin = end
    seen_BTT = (owner_BT[:, :, None] == owner_BT[:, None, :]) | (owner_BT[:, None, :] == 0)
    seen_BTT &= np.tri(shape[1], dtype=bool)
    passage_S, row_S, begin_S, end_S = torch.tensor(spans).T
    return Packed(
        ids_BT=torch.from_numpy(ids_BT),
        positions_BT=torch.from_numpy(positions_BT),
        mask_B1TT=torch.zeros(seen_BTT.shape).masked_fill_(~torch.from_numpy(seen_BTT), float("-inf"))[:, None],
        passage_BT=torch.from_numpy(owner_BT == 0), passage_S=passage_S, row_S=row_S, begin_S=begin_S, end_S=end_S,
    )  # fmt: skip


def twice(tokenizer: PreTrainedTokenizerBase, size: int, *, seed: int, length: int = 24) -> Iterator[Packed]:
    """Random tokens of the world's words as the passage, the same again as the sentence: to learn to copy."""
    words = _words(tokenizer)
    for step in count():
        tokens = np.random.default_rng([seed, step]).choice(words, (size, length)).tolist()
        yield pack([(row, [row]) for row in tokens], pad=int(tokenizer.pad_token_id))


def summaries(
    tokenizer: PreTrainedTokenizerBase, size: int, *, seed: int, wordings: int, others: int | None = None
) -> Iterator[Packed]:
    """Passages with several wordings of the reference; `others` as in `world.story`."""

    def row(index: int) -> Row:
        told = story("train", seed, index, others=others)
        rng = random.Random(f"wordings:{index}")
        sentences = [told.reference, *(summarise(told.events[0], rng) for _ in range(wordings - 1))]
        return _tokens(tokenizer, told.passage, sentences)

    for batch in of_like_length(row, _length, size):
        yield pack(batch, pad=int(tokenizer.pad_token_id))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Passages with true and false sentences."""

    packed: Packed
    entailed_S: Tensor
    """1 or 0."""
    true: Tokens
    """The tokens of the true sentences."""
    tried: Tokens
    """Beside each of them another one, mostly wrong in its place: half of them could stand there in another story."""
    read: Tokens
    """The tokens of the false sentences up to the first error; of a broken one all."""
    verdict_BT: Tensor
    """1 at tokens up to which a sentence is true, 0 at those behind its first error, else -1."""


def judged(tokenizer: PreTrainedTokenizerBase, size: int, *, seed: int, sentences: int) -> Iterator[Judged]:
    """Passages, each with so many of its pairs of `grounded.pairs`."""
    words, rng = _words(tokenizer), np.random.default_rng(seed)

    def row(index: int) -> tuple[Row, list[Pair]]:
        pairs = [pair("train", seed, index, variant=variant) for variant in range(sentences)]
        return _tokens(tokenizer, pairs[0].premise, [p.hypothesis for p in pairs]), pairs

    for batch in of_like_length(row, lambda drawn: _length(drawn[0]), size):
        packed = pack([tokens for tokens, _ in batch], pad=int(tokenizer.pad_token_id))
        pairs = [p for _, pairs in batch for p in pairs]
        entailed_S = torch.tensor([int(p.entailed) for p in pairs])
        true = packed.tokens_of(entailed_S)
        false = packed.tokens_of(1 - entailed_S)
        packed, tried = packed.beside(true, torch.from_numpy(_others(true, packed, words, rng)))
        verdict_BT = torch.full_like(packed.ids_BT, -1)
        for p, at, begin, end in zip(
            pairs, packed.row_S.tolist(), packed.begin_S.tolist(), packed.end_S.tolist(), strict=True
        ):
            verdict_BT[at, end - 1] = int(p.entailed)
            if p.kind != "broken":
                true_to, false_from = (begin + n for n in _around_error(tokenizer, p))
                verdict_BT[at, begin:true_to], verdict_BT[at, false_from : end - 1] = 1, 0
        read = false.where(verdict_BT[false.row_N, false.column_N] != 0)
        yield Judged(packed=packed, entailed_S=entailed_S, true=true, tried=tried, read=read, verdict_BT=verdict_BT)


def _others(tokens: Tokens, packed: Packed, words: list[int], rng: np.random.Generator) -> np.ndarray:
    """For each token another: of those that follow the same token in the batch, of its passage, or any, 2 : 1 : 1."""
    before = packed.ids_BT[tokens.row_N, tokens.before_N].tolist()
    followers: dict[int, list[int]] = {}
    for previous, token in zip(before, tokens.ids(packed).tolist(), strict=True):
        followers.setdefault(previous, []).append(token)
    passages = [row[mask].numpy() for row, mask in zip(packed.ids_BT, packed.passage_BT, strict=True)]
    choices = np.array([
        [rng.choice(followers[previous]) for previous in before],
        [rng.choice(passages[row]) for row in tokens.row_N.tolist()],
        rng.choice(words, len(before)),
    ])  # fmt: skip
    return choices[rng.choice(3, len(before), p=(0.5, 0.25, 0.25)), np.arange(len(before))]


def _words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the world's words are made of."""
    return sorted({token for word in vocabulary() for token in tokenizer(word)["input_ids"]})


def _tokens(tokenizer: PreTrainedTokenizerBase, passage: str, sentences: Sequence[str]) -> Row:
    first, *rest = tokenizer([prompt_of(passage), *(f" {s}" for s in sentences)])["input_ids"]
    return first, [[*tokens, int(tokenizer.eos_token_id)] for tokens in rest]


def _around_error(tokenizer: PreTrainedTokenizerBase, p: Pair) -> tuple[int, int]:
    """How many tokens of a sentence are certainly true, and from which on it is certainly false.

    Between them lie the two words that end with the first error: a name or a date may be wrong from either on.
    """
    offsets = tokenizer(f" {p.hypothesis}", return_offsets_mapping=True)["offset_mapping"]
    if p.entailed:
        return len(offsets), len(offsets)
    error = 1 + first_error(p.hypothesis, p.events)  # 1 for the space ahead
    words = f" {p.hypothesis}"[:error].split(" ")
    begin = error - len(" ".join(words[-2:]))
    return sum(end < begin for _, end in offsets), sum(start < error for start, _ in offsets)


def _length(row: Row) -> int:
    passage, sentences = row
    return len(passage) + sum(map(len, sentences))


def of_like_length(draw: Callable[[int], Drawn], length: Callable[[Drawn], int], size: int) -> Iterator[list[Drawn]]:
    """What `draw` gives for 0, 1, 2, ..., in batches that need little padding."""
    for first in count(step=PASSAGES_AHEAD * size):
        drawn = sorted(map(draw, range(first, first + PASSAGES_AHEAD * size)), key=length)
        batches = [drawn[n : n + size] for n in range(0, len(drawn), size)]
        random.Random(first).shuffle(batches)
        yield from batches
