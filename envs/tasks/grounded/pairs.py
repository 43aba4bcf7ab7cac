"""Labelled pairs (passage, sentence, entailed or not): what the entailment classifier learns from and is tested on.

Half of the sentences are true by the oracle. Of the others most are near-misses: a true sentence in which one thing
was changed, into something that looks right (a name with the same stem, the other event's place, two digits swapped).
The change is made to a sentence already drawn like a true one, its details kept or left out, so that neither the length
nor the choice of details gives the label away; `invented` alone tells one detail more. Names are the split's own.

Left out on purpose: most kinds of broken text. The classifier sees a little of it, not enough to be robust against
everything that a policy may write; that a learned reward can be exploited is what the environment is there to show.
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

`actor` to `when`: that one fact is wrong (a changed object brings its own unit with it). `invented`: a detail is told
that the passage does not tell of this event. `mixture`: the facts of two events in one sentence. `broken`: a true
sentence damaged until it is none, by words left out, repeated or shuffled, or an end cut off.
"""

_STORY_SEED_OFFSET: Final = 500_000_000
"""Keeps the passages of these pairs apart from those of `world.story` at the seeds that people choose."""

_WEIGHTS: Final = {"actor": 3.0, "amount": 2.0, "where": 2.0, "when": 2.0}
"""How often a kind is drawn, against 1 for those not named: names, numbers and dates are what students get wrong."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A premise, a hypothesis, and whether the first entails the second."""

    premise: str
    hypothesis: str
    entailed: bool
    kind: str
    """One of `TRUE_KINDS` or `FALSE_KINDS`."""
    events: tuple[Event, ...]
    """What the premise tells."""


def pair(split: str, seed: int, index: int, *, variant: int = 0) -> Pair:
    """The pair with this index; the same arguments give the same pair in every process.

    Pairs of one index share their premise; `variant` numbers them.

    Every true sentence is true by the oracle, every false one false or, of kind `broken`, unparsable.

    Raises: ValueError for an unknown split.

    >>> pair("train", 0, 0) == pair("train", 0, 0)
    True
    """
    story = world.story(split, seed + _STORY_SEED_OFFSET, index)
    rng = random.Random(f"rlgkd-grounded-pair:{split}:{seed}:{index}" + (f":{variant}" if variant else ""))
    if rng.random() < 0.5:
        source = _source(rng, story)
        kind = "main" if source is story.events[0] else "other"
        hypothesis = _write(rng, _shortened(rng, source))
    elif rng.random() < BROKEN_SHARE:
        kind, hypothesis = "broken", _broken(rng, story)
    else:
        kind, hypothesis = _near_miss(rng, story, split)
    return Pair(
        premise=story.passage, hypothesis=hypothesis, entailed=kind in TRUE_KINDS, kind=kind, events=story.events
    )  # fmt: skip


def _source(rng: random.Random, story: Story) -> Event:
    return story.events[0] if rng.random() < MAIN_SHARE else rng.choice(story.events[1:])


def _shortened(rng: random.Random, event: Event) -> Event:
    """The event with the details that a sentence will tell: `world.summarise` drops each alike, only here ahead."""
    drop = rng.choice(DROPS)
    return replace(event, **{detail: "" for detail in event.told() if rng.random() < drop})


def _write(rng: random.Random, event: Event) -> str:
    return world.summarise(event, rng, drop=0.0)


# Near-misses: each function changes one thing of `told`, a shortened event, and returns the whole.


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What a near-miss is made from."""

    told: Event
    source: Event
    other: Event
    passage_words: tuple[str, ...]
    names: world.Names  # the names of the split; private to the package, not to the module


def _near_miss(rng: random.Random, story: Story, split: str) -> tuple[str, str]:
    """A kind and a false sentence of it; drawn again in the rare case that the change made another truth."""
    words = tuple(word.strip(".,") for word in story.passage.split())
    while True:
        source = _source(rng, story)
        others = [event for event in story.events if event is not source]
        scene = _Scene(
            told=_shortened(rng, source), source=source, passage_words=words, names=world.names_of(split),
            other=rng.choice(others),
        )  # fmt: skip
        possible = [kind for kind in _NEAR_MISSES if _applies(kind, scene)]
        (kind,) = rng.choices(possible, [_WEIGHTS.get(kind, 1.0) for kind in possible])
        hypothesis = _write(rng, _NEAR_MISSES[kind](rng, scene))
        verdict = judge(hypothesis, story.events)
        if not verdict.true:
            assert verdict.parsable, f"a near-miss is a sentence of the grammar: {hypothesis}"
            return kind, hypothesis


def _applies(kind: str, scene: _Scene) -> bool:
    if kind in DETAILS:
        return bool(getattr(scene.told, kind))
    return kind != "invented" or len(scene.source.told()) < len(DETAILS)


def _other_actor(rng: random.Random, scene: _Scene) -> Event:
    """Another event's actor, a bystander of the passage, a stranger, or the same with half of the name changed."""
    actor, people, organisations = scene.told.actor, scene.names.people, scene.names.organisations
    if rng.random() < 0.35:
        return replace(scene.told, actor=scene.other.actor)
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
    return replace(scene.told, actor=_not(actor, rng, found, strangers, people))


@lru_cache
def _as_set(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def _one_ending_apart(name: str, other: str) -> bool:
    """Two different names of one or two words that differ in one word only, and that begins alike."""
    differing = [(a, b) for a, b in zip(name.split(), other.split(), strict=True) if a != b]
    return len(differing) == 1 and differing[0][0][:3] == differing[0][1][:3]


def _other_action(rng: random.Random, scene: _Scene) -> Event:
    return replace(scene.told, action=_pick(rng, scene.told.action, scene.other.action, tuple(ACTIONS)))


def _other_object(rng: random.Random, scene: _Scene) -> Event:
    return replace(scene.told, object=_pick(rng, scene.told.object, scene.other.object, tuple(OBJECTS)))


def _other_amount(rng: random.Random, scene: _Scene) -> Event:
    """One digit changed, two digits swapped, the other event's amount, or another number of the passage."""
    amount = scene.told.amount
    at = rng.randrange(len(amount))
    digits = [d for d in "0123456789" if d != amount[at] and (at or d != "0")]
    changed = amount[:at] + rng.choice(digits) + amount[at + 1 :]
    left = rng.randrange(max(1, len(amount) - 1))
    swapped = amount[:left] + amount[left : left + 2][::-1] + amount[left + 2 :]
    elsewhere = [w for w in scene.passage_words if w.isdigit() and len(w) > 1] or [changed]
    ways = (changed, changed, swapped, scene.other.amount or changed, rng.choice(elsewhere))
    return replace(scene.told, amount=rng.choice([way for way in ways if way != amount and way[0] != "0"]))


def _other_audience(rng: random.Random, scene: _Scene) -> Event:
    return replace(scene.told, whom=_pick(rng, scene.told.whom, scene.other.whom, AUDIENCES))


def _other_place(rng: random.Random, scene: _Scene) -> Event:
    """The other event's place, one told of something else, one with the same stem, or one that is nowhere told."""
    here, places = scene.told.where, scene.names.places
    elsewhere = [word for word in scene.passage_words if word in _as_set(places) and word != here]
    alike = [place for place in places if _one_ending_apart(place, here)]
    strange = [place for place in places if place not in scene.passage_words]
    ways = [[scene.other.where] if scene.other.where else elsewhere, elsewhere, alike, strange]
    return replace(scene.told, where=_not(here, rng, rng.choice([way for way in ways if way]), strange))


def _other_date(rng: random.Random, scene: _Scene) -> Event:
    """The day or the month changed, or the other event's date."""
    when = scene.told.when
    if scene.other.when and rng.random() < 0.35:
        return replace(scene.told, when=_not(when, rng, [scene.other.when], WEEKDAYS))
    if when in WEEKDAYS:
        return replace(scene.told, when=_not(when, rng, WEEKDAYS))
    day, month = when.split()
    if rng.random() < 0.5:
        return replace(scene.told, when=f"{day} {_not(month, rng, MONTHS)}")
    return replace(scene.told, when=f"{_not(day, rng, [str(d) for d in range(1, 29)])} {month}")


def _invented(rng: random.Random, scene: _Scene) -> Event:
    """One more detail, which this event does not have: the other event's or one out of nothing."""
    missing = rng.choice([detail for detail in DETAILS if not getattr(scene.source, detail)])
    made_up = {
        "amount": str(rng.randint(10, 999)),
        "whom": rng.choice(AUDIENCES),
        "where": rng.choice(scene.names.places),
        "when": rng.choice((rng.choice(WEEKDAYS), f"{rng.randint(1, 28)} {rng.choice(MONTHS)}")),
    }
    borrowed = getattr(scene.other, missing) if rng.random() < 0.5 else ""
    return replace(scene.told, **{missing: borrowed or made_up[missing]})


def _mixture(rng: random.Random, scene: _Scene) -> Event:
    """Each told fact from one of the two events; a detail that the other does not have stays."""
    facts = {name: value for name, value in vars(scene.other).items() if value and getattr(scene.told, name)}
    return replace(scene.told, **{name: value for name, value in facts.items() if rng.random() < 0.5})


def _pick(rng: random.Random, right: str, near: str, all_: tuple[str, ...]) -> str:
    """A wrong value: the other event's in half of the cases where it has another one."""
    return near if near not in ("", right) and rng.random() < 0.5 else _not(right, rng, all_)


def _not(right: str, rng: random.Random, *choices: list[str] | tuple[str, ...]) -> str:
    """A value other than `right`, from the first of the choices that has one."""
    return next(rng.choice(wrong) for group in choices if (wrong := [value for value in group if value != right]))


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


def _broken(rng: random.Random, story: Story) -> str:
    """A true sentence damaged until the oracle cannot read it."""
    while True:
        words = _write(rng, _shortened(rng, _source(rng, story)))[:-1].split()
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
            words, end = words[: at + 1], rng.choice(("", "."))
        text = " ".join(words) + end
        if not judge(text, story.events).parsable:
            return text
