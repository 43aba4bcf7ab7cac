"""Pairs for the entailment classifier: balanced, labelled as the oracle judges, with every kind of near-miss."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from functools import lru_cache
from statistics import fmean

import pytest

from rlgkd.envs.tasks.grounded import world
from rlgkd.envs.tasks.grounded.oracle import judge, parse
from rlgkd.envs.tasks.grounded.pairs import _STORY_SEED_OFFSET, FALSE_KINDS, TRUE_KINDS, Pair, pair
from rlgkd.envs.tasks.grounded.world import DETAILS, SPLITS, Event

COUNT = 6000
FACTS = tuple(field.name for field in fields(Event))


@lru_cache
def some_pairs(split: str) -> list[Pair]:
    return [pair(split, 0, index) for index in range(COUNT)]


def events_of(split: str, index: int) -> tuple[Event, ...]:
    return world.story(split, _STORY_SEED_OFFSET, index).events


def test_the_same_arguments_give_the_same_pair_in_another_process() -> None:
    code = "from rlgkd.envs.tasks.grounded.pairs import pair; print([pair('train', 0, index) for index in range(300)])"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == repr(some_pairs("train")[:300])


def test_an_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="split: 'dev' is unknown"):
        pair("dev", 0, 0)


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_pairs_are_entailed(split: str) -> None:
    assert fmean(p.entailed for p in some_pairs(split)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_agrees_with_every_label(split: str) -> None:
    for index, p in enumerate(some_pairs(split)):
        verdict = judge(p.hypothesis, events_of(split, index))
        assert verdict.true == p.entailed, p
        assert verdict.parsable == (p.kind != "broken"), p


@pytest.mark.parametrize("split", SPLITS)
def test_each_kind_occurs_and_goes_with_its_label(split: str) -> None:
    kinds = Counter((p.kind, p.entailed) for p in some_pairs(split))
    assert set(kinds) == {(kind, True) for kind in TRUE_KINDS} | {(kind, False) for kind in FALSE_KINDS}
    assert min(kinds.values()) > 0.01 * COUNT


@pytest.mark.parametrize("split", SPLITS)
def test_about_8_percent_of_the_negatives_are_broken(split: str) -> None:
    broken = [p.kind == "broken" for p in some_pairs(split) if not p.entailed]
    assert fmean(broken) == pytest.approx(0.08, abs=0.02)


@pytest.mark.parametrize("split", SPLITS)
def test_a_near_miss_differs_from_the_truth_in_its_one_fact(split: str) -> None:
    for index, p in enumerate(some_pairs(split)):
        claim = parse(p.hypothesis)
        if claim is None or p.kind not in FACTS:
            continue
        named = [fact for fact in FACTS if getattr(claim, fact)]
        wrong = [[f for f in named if getattr(claim, f) != getattr(event, f)] for event in events_of(split, index)]
        assert [p.kind] in wrong, p


@pytest.mark.parametrize("split", SPLITS)
def test_neither_the_length_nor_a_detail_gives_the_label_away(split: str) -> None:
    parsed = [(p.entailed, parse(p.hypothesis), len(p.hypothesis.split())) for p in some_pairs(split)]
    lengths = [fmean(words for entailed, _, words in parsed if entailed == label) for label in (True, False)]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.5)
    for detail in DETAILS:
        labels = [entailed for entailed, claim, _ in parsed if claim and getattr(claim, detail)]
        assert fmean(labels) == pytest.approx(0.5, abs=0.06)


def test_hypotheses_keep_to_the_names_of_their_split() -> None:
    for split in SPLITS:
        names = world.names_of(split)
        actors, places = {*names.people, *names.organisations}, {"", *names.places}
        claims = [parse(p.hypothesis) for p in some_pairs(split) if p.kind != "broken"]
        assert all(event and event.actor in actors and event.where in places for event in claims)
