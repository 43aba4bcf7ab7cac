"""A sentence packed with others after one passage has the hidden states that it has alone after it."""

from __future__ import annotations

import torch

from rlgkd.envs.tasks.grounded.env import prompt_of
from rlgkd.envs.tasks.grounded.oracle import first_error
from rlgkd.envs.tasks.grounded.pairs import pair
from rlgkd.envs.tasks.grounded.world import story
from rlgkd.lm import load, load_tokenizer
from rlgkd.scripts.assets.packing import judged, summaries

TOKENIZER = load_tokenizer("embedded:grounded-student")


@torch.no_grad()
def test_a_packed_sentence_has_the_logits_that_it_has_alone_after_the_passage() -> None:
    model = load("embedded:grounded-student")
    packed = next(summaries(TOKENIZER, 4, seed=1, wordings=3))
    logits_BTV = model(**packed.inputs).logits
    for s in range(len(packed.row_S)):
        sentence = packed.tokens_of(torch.arange(len(packed.row_S)) == s)
        passage, ids = packed.ids_BT[packed.row_S[s], : packed.passage_S[s]], sentence.ids(packed)
        alone_TV = model(torch.cat([passage, ids])[None]).logits[0]
        torch.testing.assert_close(
            logits_BTV[sentence.row_N, sentence.before_N], alone_TV[len(passage) - 1 : -1], rtol=1e-4, atol=1e-4
        )  # the shift by one: a state predicts the next token
        assert ids[-1] == TOKENIZER.eos_token_id


@torch.no_grad()
def test_an_alternative_token_changes_nothing_and_has_the_logits_that_it_would_have_there() -> None:
    model = load("embedded:grounded-student")
    packed = next(summaries(TOKENIZER, 4, seed=1, wordings=2))
    third = packed.tokens_of(torch.arange(len(packed.row_S)) == 3)
    other_N = third.ids(packed).roll(1)
    wider, tried = packed.with_alternatives(third, other_N)
    assert torch.equal(tried.ids(wider), other_N)
    logits_BTV = model(**wider.inputs).logits
    torch.testing.assert_close(
        logits_BTV[:, : packed.ids_BT.shape[1]], model(**packed.inputs).logits, rtol=1e-4, atol=1e-4
    )
    passage, ids = packed.ids_BT[packed.row_S[3], : packed.passage_S[3]], third.ids(packed)
    for n in range(len(ids)):
        alone_TV = model(torch.cat([passage, ids[:n], other_N[n, None]])[None]).logits[0]
        torch.testing.assert_close(logits_BTV[tried.row_N[n], tried.column_N[n]], alone_TV[-1], rtol=1e-4, atol=1e-4)


def test_the_first_wording_is_the_reference() -> None:
    packed = next(summaries(TOKENIZER, 4, seed=1, wordings=2))
    references = {prompt_of(s.passage): s.reference for s in (story("train", 1, index) for index in range(32))}
    for s in range(0, len(packed.row_S), 2):
        row, passage = packed.ids_BT[packed.row_S[s]], int(packed.passage_S[s])
        sentence = row[packed.begin_S[s] : packed.end_S[s] - 1]
        assert TOKENIZER.decode(sentence).strip() == references[TOKENIZER.decode(row[:passage])]


def test_a_sentence_is_true_up_to_its_first_error_and_false_after_it() -> None:
    batch = next(judged(TOKENIZER, 8, seed=1, sentences=4))
    drawn = {
        f" {p.hypothesis}": p for p in (pair("train", 1, index, variant=v) for index in range(64) for v in range(4))
    }
    seen = set()
    for s, entailed in enumerate(batch.entailed_S.tolist()):
        row, begin, end = int(batch.packed.row_S[s]), int(batch.packed.begin_S[s]), int(batch.packed.end_S[s])
        ids, verdicts = batch.packed.ids_BT[row, begin:end], batch.verdict_BT[row, begin:end].tolist()
        p = drawn[TOKENIZER.decode(ids[:-1])]
        assert bool(entailed) == p.entailed == bool(verdicts.pop())
        if p.entailed or p.kind == "broken":
            assert set(verdicts) == ({1} if p.entailed else {-1})
        else:
            error = first_error(p.hypothesis, p.events)
            true, unknown = verdicts.count(1), verdicts.count(-1)
            assert verdicts == [1] * true + [-1] * unknown + [0] * (len(verdicts) - true - unknown) and unknown
            assert p.hypothesis[:error].startswith(TOKENIZER.decode(ids[:true]).strip())
            assert TOKENIZER.decode(ids[: true + unknown]).strip() == p.hypothesis[:error]
            read = batch.read.column_N[(batch.read.row_N == row) & (batch.read.column_N >= begin)]
            assert read[: true + unknown].tolist() == list(range(begin, begin + true + unknown))
        seen.add(p.kind)
    assert len(seen) > 4
