"""The world of GroundedSummary: items depend on their arguments alone, do not repeat, and keep splits apart."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from on_request import minutes

from rlgkd.envs.tasks.grounded import world
from rlgkd.envs.tasks.grounded.oracle import parse
from rlgkd.envs.tasks.grounded.world import DETAILS, SPLITS, story

PRINT_SOME = (
    "from rlgkd.envs.tasks.grounded.world import SPLITS, story\n"
    "print([story(split, seed, index) for split in SPLITS for seed in (0, 7) for index in range(20)])"
)


def test_the_same_arguments_give_the_same_story_in_another_process() -> None:
    here = [story(split, seed, index) for split in SPLITS for seed in (0, 7) for index in range(20)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", PRINT_SOME], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == repr(here)


def test_seeds_and_splits_give_different_stories() -> None:
    passages = {story(split, seed, 0).passage for split in SPLITS for seed in range(20)}
    assert len(passages) == 3 * 20


def test_an_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="split: 'dev' is unknown; choose one of train, validation, test"):
        story("dev", 0, 0)


@pytest.mark.parametrize("split", SPLITS)
def test_20_000_passages_are_distinct(split: str) -> None:
    assert len({story(split, 0, index).passage for index in range(20_000)}) == 20_000


@minutes
@pytest.mark.parametrize("split", SPLITS)
def test_100_000_passages_are_distinct(split: str) -> None:
    assert len({story(split, 0, index).passage for index in range(100_000)}) == 100_000


@pytest.mark.parametrize("split", SPLITS)
def test_a_passage_has_3_to_6_sentences_and_every_such_length_occurs(split: str) -> None:
    lengths = {story(split, 0, index).passage.count(".") for index in range(2000)}
    assert lengths == {3, 4, 5, 6}


@pytest.mark.parametrize("split", SPLITS)
def test_a_passage_reports_every_fact_of_its_events(split: str) -> None:
    for index in range(2000):
        item = story(split, 0, index)
        words = item.passage.lower()
        for event in item.events:
            facts = [event.actor, event.object, *(getattr(event, detail) for detail in event.details())]
            assert all(fact.lower() in words for fact in facts), item
            assert any(verb in words for verb in world.ACTIONS[event.action]), item


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_sentence_reports_the_main_event(split: str) -> None:
    for index in range(2000):
        item = story(split, 0, index)
        first, main = parse(item.passage[: item.passage.index(".") + 1]), item.events[0]
        assert first is not None
        assert (first.actor, first.action, first.object) == (main.actor, main.action, main.object)


def test_no_name_of_one_split_occurs_in_the_passages_of_another() -> None:
    shared = {*world._FIRST_NAMES, *world._ORG_KINDS, *world.ROLES, *world.WEEKDAYS, *world.MONTHS}
    openings = {"A", "In", "On", "The", "There", "Prices", *(whom.capitalize() for whom in world.AUDIENCES)}

    def names(split: str) -> set[str]:
        words = {word.strip(".,") for index in range(5000) for word in story(split, 0, index).passage.split()}
        return {word for word in words if word[0].isupper()} - shared - openings

    train, validation, test = map(names, SPLITS)
    assert min(len(train), len(validation), len(test)) > 20
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("detail", DETAILS)
def test_a_reference_leaves_each_detail_out_one_time_in_five(split: str, detail: str) -> None:
    items = [item for index in range(8000) if getattr((item := story(split, 0, index)).events[0], detail)]
    left_out = sum(not getattr(parse(item.reference), detail) for item in items)
    assert left_out / len(items) == pytest.approx(0.2, abs=0.02)
