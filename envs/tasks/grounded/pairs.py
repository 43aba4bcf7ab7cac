"""Labelled pairs (passage, sentence, entailed or not) that train and test the entailment classifier.

Half of the sentences are true by the oracle. Most of the others are near-misses: a true sentence in which one thing
was changed into something that looks right (a name with the same stem, the other event's place, two digits swapped).
The change is made to a sentence already drawn like a true one, its details kept or left out, so that neither the length
nor the choice of details gives the label away; only `invented` adds a detail. Names are the split's own.

Left out on purpose: most kinds of broken text. The classifier sees a little of it, not enough to be robust against
everything that a policy may generate: the environment is there to show that a learned reward can be exploited.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from rlgkd.envs.tasks.grounded import world
from rlgkd.envs.tasks.grounded.oracle import judge
from rlgkd.envs.tasks.grounded.world import ACTIONS, AUDIENCES, DETAILS, MONTHS, OBJECTS, WEEKDAYS, Event, Story

DROPS: Final = (0.0, 0.2, 0.5, 0.8)
"""Probabilities with which a sentence's details are left out; each pair draws one of them."""

MAIN_SHARE: Final = 0.9
"""How often the sentence that a pair starts from is about the main event."""

BROKEN_SHARE: Final = 0.08
"""Share of the negatives that are broken text."""

TRUE_KINDS: Final = ("main", "other")
"""Kinds of true sentences: about the passage's main event, about another one."""

FALSE_KINDS: Final = ("actor", "action", "object", *DETAILS, "invented", "mixture", "broken")
"""Kinds of false sentences, by what was changed.

`actor` to `when`: that one fact is wrong (a changed object brings its own unit with it). `invented`: one detail is not
in the passage's report of this event. `mixture`: the facts of two events in one sentence. `broken`: a true sentence
damaged until it is no sentence, by words left out, repeated or shuffled, or an end cut off.
"""

_STORY_SEED_OFFSET: Final = 500_000_000
"""Keeps the passages of these pairs apart from those of `world.story` at the seeds that people choose."""

_WEIGHTS: Final = {"actor": 3.0, "amount": 2.0, "where": 2.0, "when": 2.0}
"""How often a kind is drawn, against 1 for the others: students get names, numbers and dates wrong most often."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A premise, a hypothesis, and whether the first entails the second."""

    premise: str
    hypothesis: str
    entailed: bool
    kind: str
    """One of `TRUE_KINDS` or `FALSE_KINDS`."""
    events: tuple[Event, ...]
    """The events that the premise reports."""


def pair(split: str, seed: int, index: int, *, variant: int = 0) -> Pair:
    """Return the pair with this index; the same arguments give the same pair in every process.

    Pairs of one index share their premise; `variant` numbers them. By the oracle, every true sentence is true, and
    every false one is false or, if its kind is `broken`, unparsable.

    Raises: ValueError for an unknown split.

    Examples:
        >>> pair("train", 0, 0) == pair("train", 0, 0)
        True
    """
    story = world.story(split, seed + _STORY_SEED_OFFSET, index)
    rng = random.Random(f"rlgkd-grounded-pair:{split}:{seed}:{index}" + (f":{variant}" if variant else ""))
    if rng.random() < 0.5:
        source = _source(rng, story)
        kind = "main" if source is story.events[0] else "other"
        hypothesis = _sentence(rng, _shortened(rng, source))
    elif rng.random() < BROKEN_SHARE:
        kind = "broken"
        hypothesis = _broken_sentence(rng, story)
    else:
        kind, hypothesis = _near_miss(rng, story, split)
    return Pair(
        premise=story.passage, hypothesis=hypothesis, entailed=kind in TRUE_KINDS, kind=kind, events=story.events
    )


def _source(rng: random.Random, story: Story) -> Event:
    return story.events[0] if rng.random() < MAIN_SHARE else rng.choice(story.events[1:])


def _shortened(rng: random.Random, event: Event) -> Event:
    """The event with the details that a sentence will have, dropped as `world.summarise` would drop them."""
    drop = rng.choice(DROPS)
    return replace(event, **{detail: "" for detail in event.details() if rng.random() < drop})


def _sentence(rng: random.Random, event: Event) -> str:
    return world.summarise(event, rng, drop=0.0)


# Near-misses: each function changes one thing of `scene.event` and returns the changed event.


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """The material of a near-miss."""

    event: Event
    """The event of `source`, with the details that the sentence has."""
    source: Event
    other: Event
    passage_words: tuple[str, ...]
    names: world.Names
    """The names of the split."""


def _near_miss(rng: random.Random, story: Story, split: str) -> tuple[str, str]:
    """A kind and a false sentence of it; drawn again in the rare case that the changed sentence is true."""
    words = tuple(word.strip(".,") for word in story.passage.split())
    while True:
        source = _source(rng, story)
        others = [event for event in story.events if event is not source]
        scene = _Scene(
            event=_shortened(rng, source),
            source=source,
            passage_words=words,
            names=world.names_of(split),
            other=rng.choice(others),
        )
        possible = [kind for kind in _NEAR_MISSES if _applies(kind, scene)]
        (kind,) = rng.choices(possible, [_WEIGHTS.get(kind, 1.0) for kind in possible])
        hypothesis = _sentence(rng, _NEAR_MISSES[kind](rng, scene))
        verdict = judge(hypothesis, story.events)
        if not verdict.true:
            assert verdict.parsable, f"a near-miss is a sentence of the grammar: {hypothesis}"
            return kind, hypothesis


def _applies(kind: str, scene: _Scene) -> bool:
    if kind in DETAILS:
        return bool(getattr(scene.event, kind))
    return kind != "invented" or len(scene.source.details()) < len(DETAILS)


def _other_actor(rng: random.Random, scene: _Scene) -> Event:
    """Another event's actor, a bystander of the passage, a stranger, or the same with half of the name changed."""
    actor = scene.event.actor
    people = scene.names.people
    organisations = scene.names.organisations
    if rng.random() < 0.35:
        return replace(scene.event, actor=scene.other.actor)
    kin = people if actor in _as_set(people) else organisations
    way = rng.choice(("bystander", "first word", "last word", "stem", "stranger"))
    if way == "bystander":
        twos = map(" ".join, zip(scene.passage_words, scene.passage_words[1:], strict=False))
        found = [two for two in twos if two in _as_set(people) and two != scene.other.actor]
    elif way == "stem":
        found = [name for name in kin if _one_ending_apart(name, actor)]
    elif way == "stranger":
        found = []
    else:
        word = 0 if way == "first word" else 1
        found = [name for name in kin if name.split()[word] == actor.split()[word]]
    strangers = [rng.choice(rng.choice((people, organisations))) for _ in range(2)]
    return replace(scene.event, actor=_other_than(actor, rng, found, strangers, people))


@lru_cache
def _as_set(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def _one_ending_apart(name: str, other: str) -> bool:
    """Two different names of one or two words that differ in one word only, and that begins alike."""
    differing = [(a, b) for a, b in zip(name.split(), other.split(), strict=True) if a != b]
    return len(differing) == 1 and differing[0][0][:3] == differing[0][1][:3]


def _other_action(rng: random.Random, scene: _Scene) -> Event:
    return replace(scene.event, action=_wrong_value(rng, scene.event.action, scene.other.action, tuple(ACTIONS)))


def _other_object(rng: random.Random, scene: _Scene) -> Event:
    return replace(scene.event, object=_wrong_value(rng, scene.event.object, scene.other.object, tuple(OBJECTS)))


def _other_amount(rng: random.Random, scene: _Scene) -> Event:
    """One digit changed, two digits swapped, the other event's amount, or another number of the passage."""
    amount = scene.event.amount
    at = rng.randrange(len(amount))
    digits = [d for d in "0123456789" if d != amount[at] and (at or d != "0")]
    changed = amount[:at] + rng.choice(digits) + amount[at + 1 :]
    left = rng.randrange(max(1, len(amount) - 1))
    swapped = amount[:left] + amount[left : left + 2][::-1] + amount[left + 2 :]
    elsewhere = [w for w in scene.passage_words if w.isdigit() and len(w) > 1] or [changed]
    ways = (changed, changed, swapped, scene.other.amount or changed, rng.choice(elsewhere))
    return replace(scene.event, amount=rng.choice([way for way in ways if way != amount and way[0] != "0"]))


def _other_audience(rng: random.Random, scene: _Scene) -> Event:
    return replace(scene.event, whom=_wrong_value(rng, scene.event.whom, scene.other.whom, AUDIENCES))


def _other_place(rng: random.Random, scene: _Scene) -> Event:
    """The other event's place, another place of the passage, one with the same stem, or one that is not in it."""
    here = scene.event.where
    places = scene.names.places
    elsewhere = [word for word in scene.passage_words if word in _as_set(places) and word != here]
    alike = [place for place in places if _one_ending_apart(place, here)]
    strange = [place for place in places if place not in scene.passage_words]
    ways = [[scene.other.where] if scene.other.where else elsewhere, elsewhere, alike, strange]
    return replace(scene.event, where=_other_than(here, rng, rng.choice([way for way in ways if way]), strange))


def _other_date(rng: random.Random, scene: _Scene) -> Event:
    """The day or the month changed, or the other event's date."""
    when = scene.event.when
    if scene.other.when and rng.random() < 0.35:
        return replace(scene.event, when=_other_than(when, rng, [scene.other.when], WEEKDAYS))
    if when in WEEKDAYS:
        return replace(scene.event, when=_other_than(when, rng, WEEKDAYS))
    day, month = when.split()
    if rng.random() < 0.5:
        return replace(scene.event, when=f"{day} {_other_than(month, rng, MONTHS)}")
    return replace(scene.event, when=f"{_other_than(day, rng, [str(d) for d in range(1, 29)])} {month}")


def _invented(rng: random.Random, scene: _Scene) -> Event:
    """One more detail, which this event does not have: the other event's or one made up."""
    missing = rng.choice([detail for detail in DETAILS if not getattr(scene.source, detail)])
    made_up = {
        "amount": str(rng.randint(10, 999)),
        "whom": rng.choice(AUDIENCES),
        "where": rng.choice(scene.names.places),
        "when": rng.choice((rng.choice(WEEKDAYS), f"{rng.randint(1, 28)} {rng.choice(MONTHS)}")),
    }
    borrowed = getattr(scene.other, missing) if rng.random() < 0.5 else ""
    return replace(scene.event, **{missing: borrowed or made_up[missing]})


def _mixture(rng: random.Random, scene: _Scene) -> Event:
    """Each fact from one of the two events; a detail that the other event does not have stays."""
    facts = {name: value for name, value in vars(scene.other).items() if value and getattr(scene.event, name)}
    return replace(scene.event, **{name: value for name, value in facts.items() if rng.random() < 0.5})


def _wrong_value(rng: random.Random, right: str, near: str, all_: tuple[str, ...]) -> str:
    """A wrong value: in half of the cases where the other event has a different one, that one."""
    return near if near not in ("", right) and rng.random() < 0.5 else _other_than(right, rng, all_)


def _other_than(right: str, rng: random.Random, *choices: list[str] | tuple[str, ...]) -> str:
    """A value other than `right`, from the first of the choices that has one."""
    for group in choices:
        wrong = [value for value in group if value != right]
        if wrong:
            return rng.choice(wrong)
    raise AssertionError("the last of the choices has at least two values")


_NEAR_MISSES: Final[dict[str, Callable[[random.Random, _Scene], Event]]] = {
    "actor": _other_actor,
    "action": _other_action,
    "object": _other_object,
    "amount": _other_amount,
    "whom": _other_audience,
    "where": _other_place,
    "when": _other_date,
    "invented": _invented,
    "mixture": _mixture,
}


def _broken_sentence(rng: random.Random, story: Story) -> str:
    """A true sentence damaged until the oracle cannot parse it."""
    while True:
        words = _sentence(rng, _shortened(rng, _source(rng, story)))[:-1].split()
        at = rng.randrange(len(words))
        end = "."
        way = rng.choice(("drop", "repeat", "shuffle", "cut"))
        if way == "drop":
            kept = sorted(rng.sample(range(len(words)), len(words) - rng.randint(1, 3)))
            words = [words[i] for i in kept]
        elif way == "repeat":
            words[at:at] = words[at : at + rng.randint(1, 4)] * rng.randint(1, 3)
        elif way == "shuffle":
            rng.shuffle(words)
        else:
            words = words[: at + 1]
            end = rng.choice(("", "."))
        text = " ".join(words) + end
        if not judge(text, story.events).parsable:
            return text
