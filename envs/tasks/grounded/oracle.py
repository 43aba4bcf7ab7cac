"""The exact oracle of GroundedSummary: parses a summary into an event and compares it with the passage's events.

The reward of the environment is a learned classifier, which a student can exploit. It cannot exploit this oracle, which
training never sees. The oracle is strict: a sentence that the grammar of `world` (or the small superset below) does not
produce is unparsable, however sensible it may sound.

Left out on purpose: paraphrase, partial credit for false sentences, and any repair of broken text.

The grammar, over words separated by single spaces (the first letter of the sentence is a capital):

    sentence := [front] (active | passive) "."
    front    := ("In" PLACE | "On" DATE) ","
    active   := ACTOR VERB "a" OBJECT detail*
    passive  := "a" OBJECT detail* "was" VERB "by" ACTOR detail*
    detail   := "with" NUMBER UNIT | "for" AUDIENCE | "in" PLACE | "on" DATE      each at most once in a sentence
    DATE     := WEEKDAY | DAY MONTH                                               DAY is 1 to 31, no leading zero

VERB, OBJECT, AUDIENCE, WEEKDAY and MONTH are the words that `world` knows, UNIT is the object's own. ACTOR is any two
capitalised words of letters, PLACE any one: a name that nobody bears parses, and is then false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlgkd.envs.tasks.grounded.world import ACTIONS, AUDIENCES, MONTHS, OBJECTS, WEEKDAYS, Event

_ACTION_OF: Final = {verb: action for action, verbs in ACTIONS.items() for verb in verbs}
_DETAIL_OF: Final = {"with": "amount", "for": "whom", "in": "where", "on": "when"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The oracle's judgement of one sentence."""

    parsable: bool
    """The grammar produces the sentence."""
    true: bool
    """Actor, action, object and every detail in the sentence agree with one and the same event of the passage."""
    coverage: float
    """Share of the main event's facts that are in the sentence, in [0, 1]; 0 unless it is true of the main event."""


def parse(sentence: str) -> Event | None:
    """Return the event that `sentence` tells, or None if it is not one sentence of the grammar (see above).

    Details that the sentence leaves out are empty strings. Any text is accepted, in time linear in its length.

    >>> parse("In Tarwick, Mara Telby shut a clinic with 12 beds.")
    Event(actor='Mara Telby', action='close', object='clinic', amount='12', whom='', where='Tarwick', when='')
    >>> parse("Mara Telby shut a clinic with 12 cows.") is None
    True
    """
    text = sentence.strip()
    if not text.endswith("."):
        return None
    try:
        return _Parser(text[:-1].split(" ")).sentence()
    except _Unparsable:
        return None


def judge(sentence: str, events: tuple[Event, ...]) -> Verdict:
    """Compare `sentence` with a passage's `events`, the main one first.

    True means: for at least one event, the sentence's actor, action and object are the event's, and each detail that
    the sentence has is a detail that this event has, with the same value. Details left out do not make it false;
    details taken from a second event, or added to an event that does not have them, do.

    Coverage counts the main event's facts: actor, action and object, one each, and one for every detail that it has.
    A sentence that is true of the main event covers (3 + its details) / (3 + the event's details). Unparsable and
    false sentences, and sentences that are true of another event only, cover 0.
    """
    claim = parse(sentence)
    if claim is None:
        return Verdict(parsable=False, true=False, coverage=0.0)
    covers_main = bool(events) and _agrees(claim, events[0])
    coverage = (3 + len(claim.details())) / (3 + len(events[0].details())) if covers_main else 0.0
    return Verdict(parsable=True, true=any(_agrees(claim, event) for event in events), coverage=coverage)


def first_error(sentence: str, events: tuple[Event, ...]) -> int:
    """Return where a sentence stops to agree with any one event: the end of the first word that makes it false.

    It is an offset in characters; the sentence's length if it is true or not a sentence of the grammar.

    >>> event = Event(actor="Mara Telby", action="close", object="clinic", amount="12")
    >>> text = "Mara Telby shut a clinic with 13 beds."
    >>> text[:first_error(text, (event,))]
    'Mara Telby shut a clinic with 13'
    """
    claim = parse(sentence)
    if claim is None:
        return len(sentence)
    verb = next(verb for verb in ACTIONS[claim.action] if f" {verb} " in sentence)
    words = {"actor": claim.actor, "action": f" {verb}", "object": f" {claim.object}"}
    words |= {detail: f" {getattr(claim, detail)}" for detail in claim.details()}
    ends = sorted((sentence.index(word) + len(word), fact) for fact, word in words.items())
    candidates = list(events)
    for end, fact in ends:
        candidates = [event for event in candidates if getattr(event, fact) == getattr(claim, fact)]
        if not candidates:
            return end
    return len(sentence)


def _agrees(claim: Event, event: Event) -> bool:
    same_core = (claim.actor, claim.action, claim.object) == (event.actor, event.action, event.object)
    return same_core and all(getattr(claim, detail) == getattr(event, detail) for detail in claim.details())


class _Unparsable(Exception):
    """Raised if the words are not a sentence of the grammar."""


class _Parser:
    """Recursive descent over the words of one sentence, with one word of look-ahead."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0
        self.details: dict[str, str] = {}

    def sentence(self) -> Event:
        front = self._front()
        if self._peek() == ("a" if front else "A") and self._peek(1) in OBJECTS:
            kind = self._object()
            self._expect("was")
            action = self._action()
            self._expect("by")
            actor = self._actor()
            self._details(kind)
        else:
            actor = self._actor()
            action = self._action()
            if self._peek() != "a":
                raise _Unparsable
            kind = self._object()
        if self.at != len(self.words):
            raise _Unparsable
        return Event(actor=actor, action=action, object=kind, **self.details)

    def _front(self) -> bool:
        opening = self._peek()
        if opening not in ("In", "On"):
            return False
        comma = next((i for i, word in enumerate(self.words[:3]) if word.endswith(",")), 0)
        if not comma:
            raise _Unparsable
        self.words[comma] = self.words[comma][:-1]
        self._detail(opening.lower(), kind="")
        if self.at != comma + 1:
            raise _Unparsable
        return True

    def _object(self) -> str:
        """The object, after its article; the details that follow it are read too."""
        self._next()
        kind = self._next()
        if kind not in OBJECTS:
            raise _Unparsable
        self._details(kind)
        return kind

    def _details(self, kind: str) -> None:
        while self._peek() in _DETAIL_OF:
            self._detail(self._peek(), kind)

    def _detail(self, preposition: str, kind: str) -> None:
        name = _DETAIL_OF[preposition]
        if name in self.details:
            raise _Unparsable
        self._next()
        value = self._next()
        if name == "amount":
            good = _is_number(value) and self._next() == OBJECTS[kind]
        elif name == "whom":
            good = value in AUDIENCES
        elif name == "where":
            good = _is_name(value)
        elif value in WEEKDAYS:
            good = True
        else:  # the length first: int() refuses very long numbers with an error of its own
            day = value
            month = self._next()
            value = f"{day} {month}"
            good = len(day) <= 2 and _is_number(day) and day[0] != "0" and int(day) <= 31 and month in MONTHS
        if not good:
            raise _Unparsable
        self.details[name] = value

    def _action(self) -> str:
        verb = self._next()
        if verb not in _ACTION_OF:
            raise _Unparsable
        return _ACTION_OF[verb]

    def _actor(self) -> str:
        first = self._next()
        last = self._next()
        if not (_is_name(first) and _is_name(last)):
            raise _Unparsable
        return f"{first} {last}"

    def _expect(self, word: str) -> None:
        if self._next() != word:
            raise _Unparsable

    def _peek(self, ahead: int = 0) -> str:
        """The word at the cursor or `ahead` of it; past the end the empty string, which no rule accepts."""
        return self.words[self.at + ahead] if self.at + ahead < len(self.words) else ""

    def _next(self) -> str:
        word = self._peek()
        self.at += 1
        return word


def _is_name(word: str) -> bool:
    return word.isalpha() and word[0].isupper()


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()
