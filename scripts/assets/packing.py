"""The training data of the embedded models: passages packed with sentences that do not attend to one another.

A row is a passage followed by its sentences. Each sentence takes the positions right after the passage and attends to
the passage and to itself, so that its hidden states are those of the sentence alone after the passage, and one forward
pass over the passage (most of a row) serves all of them.

Dimensions: B rows, T columns of a row, S sentences of a batch, N chosen tokens.
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
TokenizedPassage = tuple[list[int], list[list[int]]]
"""Tokens of a passage, and of each of its sentences, which end with the end token."""
SORTED_BATCHES = 8
"""Batches that are drawn at a time, so that rows of similar length can share one."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows in one rectangle, right-padded."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor
    """Added to attention scores: 0 where a token may attend, -inf elsewhere (a padded token attends to itself)."""
    passage_BT: Tensor
    """True at the tokens of the passages."""
    passage_S: Tensor
    """Length of each sentence's passage, in tokens."""
    row_S: Tensor
    begin_S: Tensor
    end_S: Tensor
    """Row of each sentence, its first column, and the column after its end token."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a Hugging Face model."""
        return {"input_ids": self.ids_BT, "position_ids": self.positions_BT, "attention_mask": self.mask_B1TT}

    def tokens_of(self, chosen_S: Tensor) -> Tokens:
        """Return all tokens of the sentences for which `chosen_S` is not zero."""
        rows = []
        columns = []
        before = []
        for s in chosen_S.nonzero()[:, 0].tolist():
            begin, end = int(self.begin_S[s]), int(self.end_S[s])
            rows.append(self.row_S[s].expand(end - begin))
            columns.append(torch.arange(begin, end))
            # The first token of a sentence is predicted at the passage's last, wherever in the row the sentence lies.
            before.append(torch.cat([self.passage_S[s, None] - 1, torch.arange(begin, end - 1)]))
        return Tokens(row_N=torch.cat(rows), column_N=torch.cat(columns), before_N=torch.cat(before))

    def with_alternatives(self, tokens: Tokens, ids_N: Tensor) -> tuple[Packed, Tokens]:
        """Append for each of the tokens another id that could stand there, in a column of its own.

        The new token attends to what the given one does; no other token attends to it.
        """
        size, width = self.ids_BT.shape
        counts = torch.bincount(tokens.row_N, minlength=size)
        order = tokens.row_N.argsort(stable=True)
        column_N = torch.empty_like(order)
        column_N[order] = width + torch.cat([torch.arange(n) for n in counts.tolist()])
        wide = width + int(counts.max())
        ids_BT = self.ids_BT.new_zeros(size, wide)
        ids_BT[:, :width] = self.ids_BT
        ids_BT[tokens.row_N, column_N] = ids_N
        positions_BT = self.ids_BT.new_zeros(size, wide)
        positions_BT[:, :width] = self.positions_BT
        positions_BT[tokens.row_N, column_N] = self.positions_BT[tokens.row_N, tokens.column_N]
        passage_BT = self.passage_BT.new_zeros(size, wide)
        passage_BT[:, :width] = self.passage_BT
        mask_BTT = torch.full((size, wide, wide), float("-inf"))
        mask_BTT[:, :width, :width] = self.mask_B1TT[:, 0]
        mask_BTT[tokens.row_N, column_N] = mask_BTT[tokens.row_N, tokens.column_N]
        mask_BTT[tokens.row_N, column_N, tokens.column_N] = float("-inf")  # in its stead it attends to itself
        mask_BTT.diagonal(dim1=1, dim2=2).zero_()
        packed = replace(
            self, ids_BT=ids_BT, positions_BT=positions_BT, mask_B1TT=mask_BTT[:, None], passage_BT=passage_BT
        )
        return packed, replace(tokens, column_N=column_N)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Some tokens of a rectangle."""

    row_N: Tensor
    column_N: Tensor
    before_N: Tensor
    """The column whose hidden state predicts the token."""

    def where(self, chosen_N: Tensor) -> Tokens:
        """Return the tokens for which `chosen_N` is true."""
        return Tokens(**{name: column_N[chosen_N] for name, column_N in vars(self).items()})

    def ids(self, packed: Packed) -> Tensor:
        """Return their ids [N]."""
        return packed.ids_BT[self.row_N, self.column_N]


def pack(rows: Sequence[TokenizedPassage], *, pad: int) -> Packed:
    """Put rows of passages and sentences into one rectangle."""
    shape = (len(rows), max(map(_length, rows)))
    ids_BT = np.full(shape, pad)
    positions_BT = np.zeros(shape, np.int64)
    owner_BT = np.full(shape, -1)  # 0 the passage, then 1, 2, ... the sentences
    spans = []
    for row, (passage, sentences) in enumerate(rows):
        begin = 0
        for owner, tokens in enumerate([passage, *sentences]):
            end = begin + len(tokens)
            ids_BT[row, begin:end] = tokens
            owner_BT[row, begin:end] = owner
            start = len(passage) if owner else 0
            positions_BT[row, begin:end] = np.arange(start, start + len(tokens))
            if owner:
                spans.append((len(passage), row, begin, end))
            begin = end
    attended_BTT = (owner_BT[:, :, None] == owner_BT[:, None, :]) | (owner_BT[:, None, :] == 0)
    attended_BTT &= np.tri(shape[1], dtype=bool)
    mask_BTT = torch.zeros(attended_BTT.shape).masked_fill_(~torch.from_numpy(attended_BTT), float("-inf"))
    passage_S, row_S, begin_S, end_S = torch.tensor(spans).T
    return Packed(
        ids_BT=torch.from_numpy(ids_BT),
        positions_BT=torch.from_numpy(positions_BT),
        mask_B1TT=mask_BTT[:, None],
        passage_BT=torch.from_numpy(owner_BT == 0),
        passage_S=passage_S,
        row_S=row_S,
        begin_S=begin_S,
        end_S=end_S,
    )


def repeated_tokens(tokenizer: PreTrainedTokenizerBase, size: int, *, seed: int, length: int = 24) -> Iterator[Packed]:
    """Yield random tokens of the world's words as the passage, and the same again as the sentence: to learn to copy."""
    words = word_tokens(tokenizer)
    for step in count():
        tokens = np.random.default_rng([seed, step]).choice(words, (size, length)).tolist()
        yield pack([(row, [row]) for row in tokens], pad=int(tokenizer.pad_token_id))


def summaries(
    tokenizer: PreTrainedTokenizerBase, size: int, *, seed: int, wordings: int, others: int | None = None
) -> Iterator[Packed]:
    """Yield passages with several wordings of the reference; `others` as in `world.story`."""

    def row(index: int) -> TokenizedPassage:
        drawn = story("train", seed, index, others=others)
        rng = random.Random(f"wordings:{index}")
        sentences = [drawn.reference, *(summarise(drawn.events[0], rng) for _ in range(wordings - 1))]
        return _tokenized(tokenizer, drawn.passage, sentences)

    for batch in of_similar_length(row, _length, size):
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
    """An alternative for each of those, mostly wrong there: half of them could stand there in another story."""
    read: Tokens
    """The tokens of the false sentences up to the first error; all of a broken one."""
    verdict_BT: Tensor
    """1 at tokens up to which a sentence is true, 0 at those after its first error, else -1."""


def judged(tokenizer: PreTrainedTokenizerBase, size: int, *, seed: int, sentences: int) -> Iterator[Judged]:
    """Yield passages, each with so many of its pairs of `grounded.pairs`."""
    words = word_tokens(tokenizer)
    rng = np.random.default_rng(seed)

    def row(index: int) -> tuple[TokenizedPassage, list[Pair]]:
        pairs = [pair("train", seed, index, variant=variant) for variant in range(sentences)]
        return _tokenized(tokenizer, pairs[0].premise, [p.hypothesis for p in pairs]), pairs

    for batch in of_similar_length(row, lambda drawn: _length(drawn[0]), size):
        packed = pack([tokens for tokens, _ in batch], pad=int(tokenizer.pad_token_id))
        pairs = [p for _, row_pairs in batch for p in row_pairs]
        entailed_S = torch.tensor([int(p.entailed) for p in pairs])
        true = packed.tokens_of(entailed_S)
        false = packed.tokens_of(1 - entailed_S)
        packed, tried = packed.with_alternatives(true, torch.from_numpy(_alternatives(true, packed, words, rng)))
        verdict_BT = _verdicts(tokenizer, packed, pairs)
        read = false.where(verdict_BT[false.row_N, false.column_N] != 0)
        yield Judged(packed=packed, entailed_S=entailed_S, true=true, tried=tried, read=read, verdict_BT=verdict_BT)


def _verdicts(tokenizer: PreTrainedTokenizerBase, packed: Packed, pairs: Sequence[Pair]) -> Tensor:
    """Return `Judged.verdict_BT`."""
    verdict_BT = torch.full_like(packed.ids_BT, -1)
    spans = zip(packed.row_S.tolist(), packed.begin_S.tolist(), packed.end_S.tolist(), strict=True)
    for p, (row, begin, end) in zip(pairs, spans, strict=True):
        verdict_BT[row, end - 1] = int(p.entailed)
        if p.kind != "broken":  # a broken sentence has no error that could be pointed at
            true_tokens, false_from = _around_error(tokenizer, p)
            verdict_BT[row, begin : begin + true_tokens] = 1
            verdict_BT[row, begin + false_from : end - 1] = 0
    return verdict_BT


def _alternatives(tokens: Tokens, packed: Packed, words: list[int], rng: np.random.Generator) -> np.ndarray:
    """Draw for each token another one.

    It follows the same token elsewhere in the batch, is of its passage, or is any word's token, in the ratio 2 : 1 : 1.
    """
    before = packed.ids_BT[tokens.row_N, tokens.before_N].tolist()
    followers: dict[int, list[int]] = {}
    for previous, token in zip(before, tokens.ids(packed).tolist(), strict=True):
        followers.setdefault(previous, []).append(token)
    passages = [row[mask].numpy() for row, mask in zip(packed.ids_BT, packed.passage_BT, strict=True)]
    following = [rng.choice(followers[previous]) for previous in before]
    of_passage = [rng.choice(passages[row]) for row in tokens.row_N.tolist()]
    any_word = rng.choice(words, len(before))
    choices = np.array([following, of_passage, any_word])
    return choices[rng.choice(3, len(before), p=(0.5, 0.25, 0.25)), np.arange(len(before))]


def word_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the world's words are made of."""
    return sorted({token for word in vocabulary() for token in tokenizer(word)["input_ids"]})


def _tokenized(tokenizer: PreTrainedTokenizerBase, passage: str, sentences: Sequence[str]) -> TokenizedPassage:
    first, *rest = tokenizer([prompt_of(passage), *(f" {s}" for s in sentences)])["input_ids"]
    return first, [[*tokens, int(tokenizer.eos_token_id)] for tokens in rest]


def _around_error(tokenizer: PreTrainedTokenizerBase, p: Pair) -> tuple[int, int]:
    """Return how many tokens of a sentence are certainly true, and from which one on it is certainly false.

    Between them lie the two words that end with the first error: a name or a date may be wrong from either on.
    """
    offsets = tokenizer(f" {p.hypothesis}", return_offsets_mapping=True)["offset_mapping"]
    if p.entailed:
        return len(offsets), len(offsets)
    error = 1 + first_error(p.hypothesis, p.events)  # 1 for the space in front
    words = f" {p.hypothesis}"[:error].split(" ")
    begin = error - len(" ".join(words[-2:]))
    return sum(end < begin for _, end in offsets), sum(start < error for start, _ in offsets)


def _length(row: TokenizedPassage) -> int:
    passage, sentences = row
    return len(passage) + sum(map(len, sentences))


def of_similar_length(draw: Callable[[int], Drawn], length: Callable[[Drawn], int], size: int) -> Iterator[list[Drawn]]:
    """Yield what `draw` returns for 0, 1, 2, ... in batches that need little padding."""
    for first in count(step=SORTED_BATCHES * size):
        drawn = sorted(map(draw, range(first, first + SORTED_BATCHES * size)), key=length)
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        random.Random(first).shuffle(batches)
        yield from batches
