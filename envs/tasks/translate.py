"""rlgkd/Translate-v0: English phrases of numbers, dates and times into German, rewarded by BLEU.

A miniature of WMT en-de with one right answer: German writes a number as one word, units before tens, and names the
half hour after the next hour, so nothing can be translated word by word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.procedural import ProceduralItems
from rlgkd.envs.rewards import bleu, chrf
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.settings import checked_arguments
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


def english_number(number: int) -> str:
    """Return a number from 0 to 999,999 in words: British, with `and`."""
    if number < 20:
        return EN_ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return EN_TENS[tens] + (f"-{EN_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{EN_ONES[hundreds]} hundred" + (f" and {english_number(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joined = f"{' and' if rest < 100 else ''} {english_number(rest)}" if rest else ""
    return f"{english_number(thousands)} thousand{joined}"


def german_number(number: int) -> str:
    """Return a number from 0 to 999,999 as one word."""
    return "eins" if number == 1 else _german_part(number, last=True)


def _german_part(number: int, *, last: bool) -> str:
    """A number as a part of a longer word: the last part ends with `eins`, others with `ein`."""
    if number == 1:
        return "eins" if last else "ein"
    if number < 20:
        return DE_ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{DE_ONES[ones]}und" if ones else "") + DE_TENS[tens]
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{DE_ONES[hundreds]}hundert" + (_german_part(rest, last=last) if rest else "")
    thousands, rest = divmod(number, 1000)
    return f"{_german_part(thousands, last=False)}tausend" + (_german_part(rest, last=last) if rest else "")


def english_ordinal(day: int) -> str:
    """Return a day of the month, 1 to 31, as an ordinal."""
    if day in EN_ORDINALS:
        return EN_ORDINALS[day]
    if day < 20:
        return f"{EN_ONES[day]}th"
    tens, ones = divmod(day, 10)
    return f"{EN_TENS[tens]}-{english_ordinal(ones)}"


def german_ordinal(day: int) -> str:
    """Return a day of the month, 1 to 31, as an ordinal in the form that follows `der`."""
    return DE_ORDINALS.get(day, f"{german_number(day)}{'te' if day < 20 else 'ste'}")


def draw_phrase(rng: random.Random, digits: int) -> tuple[str, str]:
    """Draw an English phrase and its translation."""
    kind = rng.choice(("number", "counted", "date", "weekday", "time"))
    number = rng.randint(2, 10 ** rng.randint(1, digits) - 1)
    if kind == "number":
        return english_number(number), german_number(number)
    if kind == "counted":
        en, de = rng.choice(NOUNS)
        return f"{english_number(number)} {en}", f"{german_number(number)} {de}"
    if kind == "time":
        hour = rng.randint(1, 12)
        quarter = rng.choice(("past", "half", "to"))
        following = hour % 12 + 1
        if quarter == "half":
            return f"half past {english_number(hour)}", f"halb {german_number(following)}"
        if quarter == "past":
            return f"a quarter past {english_number(hour)}", f"Viertel nach {german_number(hour)}"
        return f"a quarter to {english_number(hour)}", f"Viertel vor {german_number(hour)}"
    month = rng.randrange(12)
    day = rng.randint(1, 28)
    en = f"the {english_ordinal(day)} of {EN_MONTHS[month]}"
    de = f"der {german_ordinal(day)} {DE_MONTHS[month]}"
    if kind == "date":
        return en, de
    weekday = rng.randrange(7)
    return f"{EN_DAYS[weekday]}, {en}", f"{DE_DAYS[weekday]}, {de}"


@checked_arguments
def translate(
    *,
    digits: int = 4,
    tokenizer: str | PreTrainedTokenizerBase = TOKENIZER,
    max_new_tokens: int = 20,
    max_prompt_tokens: int = 24,
) -> TextTask:
    """English numbers of 1 to `digits` digits, in [1, 6], and dates into German; the reward is BLEU.

    Prompt: Two phrases joined by `and`, as `English: ...`, then `German:`.

    Reward: The sentence's BLEU against the one right translation, in [0, 1].

    Episode end: The end token; at the length limit, the text is scored as it stands.

    Splits: Phrases are drawn without end; the hash of the prompt decides the split, 8, 1 and 1 tenths.

    Args:
        digits: Digits of the largest numbers.
        tokenizer: A model's name or a loaded tokenizer.
        max_new_tokens: Length limit of a completion. The default fits 4 digits; 6 digits take 28.
        max_prompt_tokens: Length limit of a prompt. The default fits 4 digits; 6 digits take 32.

    Raises: SettingError; DependencyError without sacrebleu.
    """
    if not 1 <= digits <= 6:
        raise SettingError("digits", digits, "give 1 to 6")

    def draw(rng: random.Random, key: str) -> Item:
        phrases = [draw_phrase(rng, digits) for _ in range(2)]
        en = " and ".join(english for english, _ in phrases)
        de = " und ".join(german for _, german in phrases)
        return Item(key=key, prompt=f" English: {en}\nGerman:", reference=de)

    return TextTask(
        name="Translate",
        prompts=ProceduralItems("translate", draw),
        reward=bleu(),
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        quality=quality,
    )


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`exact`, 0 or 1, and `chrf` in [0, 1], both against the reference."""
    overlaps = chrf()(completions, [item.reference for item in items])
    return [
        {"exact": float(completion.split() == item.reference.split()), "chrf": overlap}
        for item, completion, overlap in zip(items, completions, overlaps, strict=True)
    ]
