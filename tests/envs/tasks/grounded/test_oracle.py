"""The oracle of GroundedSummary: it reads whatever the world writes, and is not to be fooled or crashed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.envs.tasks.grounded import world
from rlgkd.envs.tasks.grounded.oracle import Verdict, judge, parse
from rlgkd.envs.tasks.grounded.world import SPLITS, Event, story, summarise

CLINIC = Event(
    actor="Mara Telby", action="close", object="clinic", amount="12", whom="nurses", where="Tarwick", when="5 May"
)
FARM = Event(actor="Bel Steel", action="buy", object="farm", amount="21", when="Monday")
EVENTS = (CLINIC, FARM)

WRONG = {
    "actor": ["Mara Telman", "Nadia Telby", "Zzz Qqq", "Bel Steel"],
    "action": list(world.ACTIONS),
    "object": list(world.OBJECTS),
    "amount": ["0", "13", "21", "112", "012"],
    "whom": list(world.AUDIENCES),
    "where": ["Tarham", "Ostwick", "Zzz"],
    "when": ["6 May", "5 June", "15 May", *world.WEEKDAYS],
}


@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_is_parsable_and_true(split: str) -> None:
    for index in range(5000):
        item = story(split, 0, index)
        verdict = judge(item.reference, item.events)
        assert verdict.parsable and verdict.true and verdict.coverage > 0, item


@pytest.mark.parametrize("split", SPLITS)
def test_parsing_undoes_writing_and_coverage_is_one_when_nothing_is_left_out(split: str) -> None:
    rng = random.Random(0)
    for index in range(2000):
        events = story(split, 1, index).events
        for event in events:
            assert parse(summarise(event, rng, drop=0.0)) == event
        assert judge(summarise(events[0], rng, drop=0.0), events).coverage == 1.0


@pytest.mark.parametrize("split", SPLITS)
def test_every_corruption_of_a_single_fact_is_false(split: str) -> None:
    rng = random.Random(0)
    for index in range(300):
        events = story(split, 2, index).events[:1]
        for fact, values in WRONG.items():
            for value in values:
                if value != getattr(events[0], fact):  # a detail that the event does not have is a corruption too
                    sentence = summarise(replace(events[0], **{fact: value}), rng, drop=0.0)
                    assert judge(sentence, events) == Verdict(parsable=True, true=False, coverage=0.0), sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "Mara Telby closed a clinic with 12 beds for nurses in Tarwick on 5 May.",
        "Mara Telby shuttered a clinic on 5 May in Tarwick for nurses with 12 beds.",
        "  In Tarwick, a clinic for nurses with 12 beds was shut by Mara Telby on 5 May.\n",
        "On 5 May, Mara Telby shut a clinic for nurses in Tarwick with 12 beds.",
        "A clinic in Tarwick with 12 beds was shut by Mara Telby for nurses on 5 May.",
    ],
)
def test_details_may_stand_in_any_order_and_place(sentence: str) -> None:
    assert parse(sentence) == CLINIC


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        ".",
        "Mara Telby shut a clinic",
        "Mara Telby shut a clinic..",
        "Mara Telby shut a clinic. Mara Telby shut a clinic.",
        "mara Telby shut a clinic.",
        "Mara shut a clinic.",
        "Mara Ann Telby shut a clinic.",
        "Mara Telby destroyed a clinic.",
        "Mara Telby shut the clinic.",
        "Mara Telby shut A clinic.",
        "Mara Telby shut a castle.",
        "Mara  Telby shut a clinic.",
        "Mara Telby\nshut a clinic.",
        "Mara Telby shut a clinic with 12 cows.",
        "Mara Telby shut a clinic with twelve beds.",
        "Mara Telby shut a clinic with ١٢ beds.",
        "Mara Telby shut a clinic with 12 beds with 12 beds.",
        "Mara Telby shut a clinic for dragons.",
        "Mara Telby shut a clinic in tarwick.",
        "Mara Telby shut a clinic in.",
        "Mara Telby shut a clinic on 32 May.",
        "Mara Telby shut a clinic on 0 May.",
        "Mara Telby shut a clinic on 05 May.",
        "Mara Telby shut a clinic on May.",
        "Mara Telby shut a clinic on " + 5000 * "1" + " May.",
        "In Tarwick Mara Telby shut a clinic.",
        "In Tarwick, Mara Telby shut a clinic in Tarwick.",
        "On 5, Mara Telby shut a clinic.",
        "On Monday May, Mara Telby shut a clinic.",
        "For nurses, Mara Telby shut a clinic.",
        "In Tarwick, On Monday, Mara Telby shut a clinic.",
        "In Tarwick, A clinic was shut by Mara Telby.",
        "a clinic was shut by Mara Telby.",
        "A clinic was shut.",
        "A clinic was by Mara Telby.",
        "A clinic with 12 beds was shut by Mara Telby with 12 beds.",
    ],
)
def test_other_text_is_unparsable(sentence: str) -> None:
    assert parse(sentence) is None
    assert judge(sentence, EVENTS) == Verdict(parsable=False, true=False, coverage=0.0)


@pytest.mark.parametrize(
    ("sentence", "true", "coverage"),
    [
        ("Mara Telby shut a clinic.", True, 3 / 7),
        ("On 5 May, Mara Telby shut a clinic for nurses.", True, 5 / 7),
        ("Bel Steel acquired a farm with 21 cows on Monday.", True, 0.0),  # true, but not of the main event
        ("Bel Steel acquired a farm for nurses.", False, 0.0),  # the passage does not say for whom
        ("Bel Steel shut a clinic.", False, 0.0),  # two events mixed
        ("Mara Telby shut a clinic on Monday.", False, 0.0),
    ],
)
def test_truth_and_coverage_of_worked_examples(sentence: str, true: bool, coverage: float) -> None:
    assert judge(sentence, EVENTS) == Verdict(parsable=True, true=true, coverage=coverage)


def test_nothing_is_true_of_no_events() -> None:
    assert judge("Mara Telby shut a clinic.", ()) == Verdict(parsable=True, true=False, coverage=0.0)


def test_a_very_long_text_is_read_in_one_pass() -> None:
    assert parse("Mara Telby shut a clinic" + 200_000 * " in Tarwick" + ".") is None
    assert parse("In " + 1_000_000 * "," + ".") is None
    assert parse("A" + 1_000_000 * "a" + " " + 1_000_000 * "T" + " shut a clinic.") is not None


WORDS = sorted(
    {word for index in range(50) for word in story("train", 0, index).reference.rstrip(".").split()}
    | {"In", "On", "A", "a", "was", "by", "with", "for", "in", "on", "1", "May,", "", ","}
)


@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map(lambda words: " ".join(words) + ".")))
@settings(deadline=None)
def test_any_text_is_judged_without_an_exception(text: str) -> None:
    verdict = judge(text, EVENTS)
    assert 0.0 <= verdict.coverage <= 1.0
    assert verdict.parsable or not verdict.true
    assert verdict.true or verdict.coverage == 0.0


@given(st.integers(0, 10_000), st.integers(0, 200), st.characters(exclude_categories=()))
@settings(deadline=None)
def test_a_reference_with_one_character_inserted_is_true_only_if_it_still_reports_the_event(
    index: int, at: int, character: str
) -> None:
    item = story("train", 3, index)
    damaged = item.reference[:at] + character + item.reference[at:]
    if judge(damaged, item.events).true:
        assert damaged.split() == item.reference.split()
