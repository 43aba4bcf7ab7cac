"""The world of GroundedSummary: events, passages of 3 to 6 sentences about them, one-sentence summaries.

An item is a function of (split, seed, index) and of nothing else. A passage reports a main event first, then one or
two others with similar names, numbers and places; a summary reports the main event and may leave details out. Splits
differ in their seeds and in their names: no name of a person, place or organisation that the test split uses is ever
seen in training (its syllables are).

Left out on purpose: coreference beyond "the clinic", negation, tense. The difficulty that matters here is to copy
the right name, number and place from several near-duplicates.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

SPLITS: Final = ("train", "validation", "test")
DETAILS: Final = ("amount", "whom", "where", "when")
"""The details of an event, which a summary may leave out."""

ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "open": ("opened", "launched", "unveiled"),
    "close": ("closed", "shut", "shuttered"),
    "buy": ("bought", "acquired", "purchased"),
    "sell": ("sold", "auctioned"),
    "repair": ("repaired", "restored", "renovated"),
    "plan": ("planned", "proposed"),
}
"""Action -> verbs that mean it; every verb is its own past participle."""

OBJECTS: Final[dict[str, str]] = {
    "clinic": "beds",
    "school": "classrooms",
    "hotel": "rooms",
    "library": "books",
    "theatre": "seats",
    "farm": "cows",
    "factory": "machines",
    "market": "stalls",
    "garage": "buses",
    "harbour": "boats",
    "museum": "paintings",
    "laboratory": "computers",
}
"""Object -> the unit in which its amount is counted."""

AUDIENCES: Final = (
    *("farmers", "nurses", "students", "tourists", "families", "workers"),
    *("visitors", "pensioners", "miners", "refugees", "children", "artists"),
)
WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
ROLES: Final = ("Mayor", "Minister", "Professor", "Director")

_FIRST_NAMES = (
    *("Mara", "Jonas", "Elin", "Viktor", "Nadia", "Oskar", "Petra", "Tomas", "Ida", "Karl", "Lena", "Hugo"),
    *("Sofia", "Anton", "Greta", "Emil", "Rosa", "Felix", "Clara", "Bruno", "Alma", "Simon", "Vera", "Leon"),
)
_LAST_STEMS = ("Tel", "Bar", "Hol", "Lind", "Mor", "Nor", "Pel", "Ros", "Sten", "Wal", "Ger", "Dun", "Fal", "Har")
_LAST_ENDS = ("by", "man", "sen", "quist", "berg", "ridge", "er", "ov", "ini", "aro")
_PLACE_STEMS = (
    *("Tar", "Ost", "Brent", "Kel", "Wend", "Mar", "Gris", "Lod", "Hav", "Stor"),
    *("Vin", "Cal", "Dor", "Elm", "Fen", "Rud"),
)
_PLACE_ENDS = ("wick", "ford", "ham", "stad", "vale", "mouth", "bridge", "field", "port", "nes", "haven", "beck")
_ORG_STEMS = ("Bel", "Nord", "Alt", "Cor", "Vex", "Lum", "Zen", "Pol", "Tri", "Quan", "Sol", "Omni")
_ORG_ENDS = ("soft", "tex", "vik", "lux", "max", "gen", "line", "mark")
_ORG_KINDS = ("Foods", "Steel", "Energy", "Group", "Bank", "Motors")

_STATEMENTS: Final[dict[str, tuple[str, ...]]] = {
    "amount": ("{the} has {amount} {unit}", "{the} holds {amount} {unit}", "there are {amount} {unit} in {the}"),
    "whom": ("{the} is for {whom}", "{the} serves {whom}", "{whom} use {the}"),
    "where": ("{the} stands in {where}", "{the} lies in {where}", "{the} can be found in {where}"),
    "when": ("{the} was in the news on {when}", "the papers wrote about {the} on {when}"),
}
"""Detail -> sentences that report it alone, after the event's first mention."""

_DISTRACTORS: Final = (
    "{role} {person} praised {the}",
    "{role} {person} of {place} visited {the}",
    "{role} {person} asked {number} people about {the}",
    "prices in {place} rose by {number} percent",
)
"""Sentences that report no detail of any event: their names and numbers distract from those that matter."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Somebody did something to something; details that are not reported are empty strings."""

    actor: str
    action: str
    object: str
    amount: str = ""
    whom: str = ""
    where: str = ""
    when: str = ""

    def details(self) -> tuple[str, ...]:
        """Return the names of the details that this event has, in the order of `DETAILS`."""
        return tuple(name for name in DETAILS if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Story:
    """One item: a passage, the events it reports (the main one first), and a reference summary."""

    passage: str
    reference: str
    events: tuple[Event, ...]


def story(split: str, seed: int, index: int, *, others: int | None = None) -> Story:
    """Return the item with this index; the same arguments give the same item in every process.

    `others` is the number of events in addition to the main one; by default one or two, drawn with the item.

    Raises: ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split: '{split}' is unknown; choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"rlgkd-grounded:{split}:{seed}:{index}")
    names = names_of(split)
    main = _event(rng, names)
    events: tuple[Event, ...] = (main,)
    for _ in range(rng.choice((1, 1, 2)) if others is None else others):
        events = (*events, _event(rng, names, earlier=events))
    return Story(passage=_passage(rng, names, events), reference=summarise(main, rng), events=events)


def vocabulary() -> list[str]:
    """Return every word of this world, a leading space included; names as syllables, numbers as their first two digits.

    A tokenizer with these tokens cuts a passage into few tokens without knowing any name.
    """
    all_names = [name for split in SPLITS for group in vars(names_of(split)).values() for name in group]
    names = {word for name in all_names for word in name.split()} - set(_FIRST_NAMES) - set(_ORG_KINDS)
    words = {word.strip(".,") for index in range(2000) for word in story("train", 0, index).passage.split()}
    first = {stem for stems in (_LAST_STEMS, _PLACE_STEMS, _ORG_STEMS) for stem in stems}
    ends = {end for ends in (_LAST_ENDS, _PLACE_ENDS, _ORG_ENDS) for end in ends}
    plain = sorted(w for w in words - names if not w[0].isdigit())
    numbers = [f" {number}" for number in range(1, 100)]
    syllables = [f" {stem}" for stem in sorted(first)] + sorted(ends)
    return [f" {word}" for word in plain] + numbers + ["Summary"] + 20 * syllables


def summarise(event: Event, rng: random.Random, *, drop: float = 0.2) -> str:
    """Return a sentence that reports `event`; each detail is left out with probability `drop`, the wording varies."""
    return _lead(rng, event, [name for name in event.details() if rng.random() >= drop])


@dataclass(frozen=True)
class Names:
    """The names that one split may use."""

    people: tuple[str, ...]
    places: tuple[str, ...]
    organisations: tuple[str, ...]


@lru_cache
def names_of(split: str) -> Names:
    """Return the names of one split: one tenth of all names belongs to validation, another tenth to test."""

    def of_split(stems: tuple[str, ...], ends: tuple[str, ...]) -> list[str]:
        return [s + e for s in stems for e in ends if _split_of(s + e) == split]

    lasts = of_split(_LAST_STEMS, _LAST_ENDS)
    orgs = of_split(_ORG_STEMS, _ORG_ENDS)
    return Names(
        people=tuple(f"{first} {last}" for last in lasts for first in _FIRST_NAMES),
        places=tuple(of_split(_PLACE_STEMS, _PLACE_ENDS)),
        organisations=tuple(f"{org} {kind}" for org in orgs for kind in _ORG_KINDS),
    )


def _split_of(name: str) -> str:
    bucket = zlib.crc32(name.encode()) % 10  # Python's own hash of a text differs between processes
    return {0: "validation", 1: "test"}.get(bucket, "train")


def _event(rng: random.Random, names: Names, earlier: tuple[Event, ...] = ()) -> Event:
    """A random event by somebody new; now and then it shares the main event's object, digits or place's stem."""
    details = {
        "amount": str(rng.randint(10, 99) if rng.random() < 0.5 else rng.randint(100, 999)),
        "whom": rng.choice(AUDIENCES),
        "where": rng.choice(names.places),
        "when": rng.choice(WEEKDAYS) if rng.random() < 0.5 else f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
    }
    kind = rng.choice(tuple(OBJECTS))
    actor = rng.choice(names.organisations if rng.random() < 0.5 else names.people)
    if earlier:
        near = earlier[0]
        while actor in {event.actor for event in earlier}:
            actor = rng.choice(names.organisations if rng.random() < 0.5 else names.people)
        if rng.random() < 0.2:
            kind = near.object
        if near.where and rng.random() < 0.3:
            alike = [p for p in names.places if p[:3] == near.where[:3] and p != near.where]
            details["where"] = rng.choice(alike) if alike else details["where"]
        if near.amount and rng.random() < 0.3:
            details["amount"] = "".join(rng.sample(near.amount, len(near.amount))).lstrip("0") or details["amount"]
    reported = {name: value for name, value in details.items() if rng.random() < 0.85}
    return Event(actor=actor, action=rng.choice(tuple(ACTIONS)), object=kind, **reported)


def _passage(rng: random.Random, names: Names, events: tuple[Event, ...]) -> str:
    """The passage, event by event, the main one first; a distractor follows the first mention of what it is about."""
    threads = [
        _thread(rng, event, events, follow_ups=rng.choice((1, 2) if i == 0 else (0, 1, 1)))
        for i, event in enumerate(events)
    ]
    length = max(3, min(6, sum(map(len, threads)) + rng.choice((0, 0, 1))))
    while sum(map(len, threads)) < length:
        i = rng.randrange(len(events))
        distractor = rng.choice(_DISTRACTORS).format(
            role=rng.choice(ROLES),
            person=rng.choice(names.people),
            place=rng.choice(names.places),
            number=rng.randint(10, 999),
            the=_mention(events[i], events),
        )
        threads[i].insert(rng.randint(1, len(threads[i])), _sentence(distractor))
    sentences = [sentence for thread in threads for sentence in thread]
    return " ".join(sentences) if len(sentences) <= 6 else _passage(rng, names, events)


def _thread(rng: random.Random, event: Event, events: tuple[Event, ...], *, follow_ups: int) -> list[str]:
    """The sentences of one event: its first mention, then up to `follow_ups` with the remaining details."""
    details = list(event.details())
    rng.shuffle(details)
    later = details[: rng.randint(1, 3)] if follow_ups else []
    thread = [_lead(rng, event, [d for d in event.details() if d not in later])]
    the = _mention(event, events)
    groups = [later] if follow_ups == 1 else [later[:1], later[1:]]
    for group in groups:
        if len(group) == 1 or "when" in group or (group and rng.random() < 0.5):
            unit = OBJECTS[event.object]
            statements = [rng.choice(_STATEMENTS[d]).format(the=the, unit=unit, **vars(event)) for d in group]
            thread.append(_sentence(" and ".join(statements)))
        elif group:
            thread.append(_sentence(f"{the} is {_phrases(rng, event, group)}"))
    return thread


def _mention(event: Event, events: tuple[Event, ...]) -> str:
    """How later sentences refer to the object: with its actor if two events are about the same kind of object."""
    same = sum(e.object == event.object for e in events)
    return f"the {event.object}" if same == 1 else f"the {event.object} of {event.actor}"


def _lead(rng: random.Random, event: Event, details: list[str]) -> str:
    """A sentence that reports who did what to which object, with `details`: active or passive, perhaps a date first."""
    front = ""
    movable = [d for d in details if d in ("where", "when")]
    if movable and rng.random() < 0.3:
        first = rng.choice(movable)
        details = [d for d in details if d != first]
        front = f"{'in' if first == 'where' else 'on'} {getattr(event, first)}, "
    verb = rng.choice(ACTIONS[event.action])
    about = [d for d in details if d in ("amount", "whom")]
    rest = [d for d in details if d not in about]
    thing = " ".join(filter(None, (f"a {event.object}", _phrases(rng, event, about))))
    end = _phrases(rng, event, rest)
    core = f"{event.actor} {verb} {thing}" if rng.random() < 0.7 else f"{thing} was {verb} by {event.actor}"
    return _sentence(front + " ".join(filter(None, (core, end))))


def _phrases(rng: random.Random, event: Event, details: list[str]) -> str:
    words = {
        "amount": f"with {event.amount} {OBJECTS[event.object]}",
        "whom": f"for {event.whom}",
        "where": f"in {event.where}",
        "when": f"on {event.when}",
    }
    return " ".join(words[d] for d in rng.sample(details, len(details)))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
