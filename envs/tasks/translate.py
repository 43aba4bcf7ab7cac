"""rlgkd/Translate-v0: English phrases of numbers, dates and times into German, rewarded by BLEU.

A miniature of WMT en-de with one right answer: German writes a number as one word, units before tens, and tells the
half hour by the next hour, so nothing can be translated word by word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlgkd.envs.data.procedural import SplitItems
from rlgkd.envs.rewards import bleu, chrf
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.types import Item

TOKENIZER = "embedded:translate-teacher"
EN_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
EN_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DE_ONES = (
    "null", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf",
    "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn",
)  # fmt: skip
DE_TENS = ("", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")
EN_ORDINALS = {
    1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth", 12: "twelfth", 20: "twentieth",
    30: "thirtieth",
}  # fmt: skip
DE_ORDINALS = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
EN_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
DE_MONTHS = (
    "Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
    "Dezember",
)  # fmt: skip
EN_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DE_DAYS = ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag")
NOUNS = (("houses", "Häuser"), ("trees", "Bäume"), ("letters", "Briefe"), ("children", "Kinder"), ("ships", "Schiffe"))


def english(number: int) -> str:
    """A number from 0 to 999,999 in words: british, with `and`."""
    if number < 20:
        return EN_ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return EN_TENS[tens] + (f"-{EN_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{EN_ONES[hundreds]} hundred" + (f" and {english(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joined = f"{' and' if rest < 100 else ''} {english(rest)}" if rest else ""
    return f"{english(thousands)} thousand{joined}"


def german(number: int) -> str:
    """A number from 0 to 999,999 as one word."""
    return "eins" if number == 1 else _german(number, last=True)


def _german(number: int, *, last: bool) -> str:
    """Within a longer word; at its end a one is `eins`, but for the `ein` before a unit."""
    if number == 1:
        return "eins" if last else "ein"
    if number < 20:
        return DE_ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{DE_ONES[ones]}und" if ones else "") + DE_TENS[tens]
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{DE_ONES[hundreds]}hundert" + (_german(rest, last=last) if rest else "")
    thousands, rest = divmod(number, 1000)
    return f"{_german(thousands, last=False)}tausend" + (_german(rest, last=last) if rest else "")


def english_ordinal(day: int) -> str:
    """Of a day of the month, 1 to 31."""
    if day in EN_ORDINALS:
        return EN_ORDINALS[day]
    if day < 20:
        return f"{EN_ONES[day]}th"
    tens, ones = divmod(day, 10)
    return f"{EN_TENS[tens]}-{english_ordinal(ones)}"


def german_ordinal(day: int) -> str:
    """Of a day of the month, 1 to 31, as after `der`."""
    return DE_ORDINALS.get(day, f"{german(day)}{'te' if day < 20 else 'ste'}")


def phrase(rng: random.Random, digits: int) -> tuple[str, str]:
    """An English phrase and its German."""
    kind = rng.choice(("number", "counted", "date", "weekday", "time"))
    number = rng.randint(2, 10 ** rng.randint(1, digits) - 1)
    if kind == "number":
        return english(number), german(number)
    if kind == "counted":
        en, de = rng.choice(NOUNS)
        return f"{english(number)} {en}", f"{german(number)} {de}"
    if kind == "time":
        hour, quarter = rng.randint(1, 12), rng.choice(("past", "half", "to"))
        following = hour % 12 + 1
        if quarter == "half":
            return f"half past {english(hour)}", f"halb {german(following)}"
        if quarter == "past":
            return f"a quarter past {english(hour)}", f"Viertel nach {german(hour)}"
        return f"a quarter to {english(hour)}", f"Viertel vor {german(hour)}"
    month, day = rng.randrange(12), rng.randint(1, 28)
    en, de = f"the {english_ordinal(day)} of {EN_MONTHS[month]}", f"der {german_ordinal(day)} {DE_MONTHS[month]}"
    if kind == "date":
        return en, de
    weekday = rng.randrange(7)
    return f"{EN_DAYS[weekday]}, {en}", f"{DE_DAYS[weekday]}, {de}"


def translate(
    *, digits: int = 4, tokenizer: str = TOKENIZER, max_new_tokens: int = 20, max_prompt_tokens: int = 24
) -> TextTask:
    """English numbers of 1 to `digits` digits, in [1, 6], and dates into German; the reward is BLEU.

    The limits fit 4 digits; 6 take 28 new tokens and 32 of the prompt.

    Raises: SettingError; DependencyError without sacrebleu.
    """
    if not 1 <= digits <= 6:
        raise SettingError("digits", digits, "give 1 to 6")

    def draw(rng: random.Random, key: str) -> Item:
        two = [phrase(rng, digits) for _ in range(2)]
        en, de = (" and ".join(p[0] for p in two), " und ".join(p[1] for p in two))
        return Item(key=key, prompt=f" English: {en}\nGerman:", reference=de)

    return TextTask(
        name="Translate", prompts=SplitItems("translate", draw), reward=bleu(), tokenizer=tokenizer,
        max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens, quality=quality,
    )  # fmt: skip


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`exact`, 0 or 1, and `chrf` in [0, 1], both against the reference."""
    closeness = chrf()(completions, [item.reference for item in items])
    return [
        {"exact": float(completion.split() == item.reference.split()), "chrf": close}
        for item, completion, close in zip(items, completions, closeness, strict=True)
    ]
