"""Arithmetic, Translate and Guess without a model: gold earns everything, wrong nothing, items repeat."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest

from rlgkd.envs.tasks.arithmetic import MARKER, STEP, arithmetic
from rlgkd.envs.tasks.guess import guess
from rlgkd.envs.tasks.translate import english_number, english_ordinal, german_number, german_ordinal, translate
from rlgkd.errors import DataError, SettingError

NUMBER = 1000
TASKS = {"arithmetic": arithmetic, "translate": translate}
HARDEST = {"arithmetic": {"steps": 8}, "translate": {"digits": 6}}


def items(task, split: str = "test", seed: int = 0, number: int = NUMBER):
    return [task.item(split, seed, index) for index in range(number)]


@pytest.mark.parametrize("name", TASKS)
def test_the_gold_answer_gets_the_full_reward_and_fits_the_limits(name):
    for settings in ({}, {**HARDEST[name], "max_new_tokens": 256, "max_prompt_tokens": 512}):
        task = TASKS[name](**settings)
        some = items(task)
        scores = [score.reward for score in task.score(some, [item.reference for item in some])]
        assert scores == pytest.approx([1.0] * NUMBER)
        assert all(quality["exact"] == 1.0 for quality in task.quality(some, [item.reference for item in some]))
        for item in some:
            assert len(task.encode_prompt(item)) <= task.max_prompt_tokens
            assert len(task.encode_completion(item.reference)) <= task.max_new_tokens


def test_a_wrong_sum_earns_nothing_however_near_it_comes():
    task = arithmetic()
    some = items(task)
    wrong = [item.reference.replace(f"{MARKER} ", f"{MARKER} 1") for item in some]
    without = [item.reference.replace(MARKER, "") for item in some]
    containing = [f"{item.reference} {MARKER} {int(item.columns['answer']) + 1}" for item in some]
    both = [f"{item.reference} or {int(item.columns['answer']) + 1}" for item in some]
    for texts in (wrong, without, containing, both, [""] * NUMBER, [item.prompt for item in some]):
        assert not any(score.reward for score in task.score(some, texts))


def test_every_step_of_a_solution_is_right_and_the_last_is_the_answer():
    task = arithmetic(steps=6)
    some, lengths = items(task), set()
    for item in some:
        steps = STEP.findall(item.reference)
        lengths.add(len(steps))
        assert steps[-1][3] == str(item.columns["answer"])
        for a, symbol, b, result in steps:
            a, b, result = int(a), int(b), int(result)
            assert result == {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[symbol] and result > 0
            assert symbol != "/" or a % b == 0
        given = set(re.findall(r"\d+", item.prompt))
        known = {2} | {int(number) for number in given} | {int(step[3]) for step in steps}
        assert all(int(number) in known for step in steps for number in (step[0], step[2]))
    assert lengths == set(range(1, 7))
    halves = task.quality(some[:1], ["1 + 1 = 2. 2 + 2 = 5."])
    assert halves == [{"steps": 0.5, "exact": 0.0}]


def test_another_translation_earns_less_and_none_of_it_nothing():
    task = translate()
    some = items(task, number=300)
    others = [some[(n + 1) % 300].reference for n in range(300)]
    gold = {item.reference for item in some}
    scores = [score.reward for score in task.score(some, others)]
    assert len(gold) > 290 and sum(score == 1.0 for score in scores) <= 10 and sum(scores) / 300 < 0.3
    assert not any(score.reward for score in task.score(some, [""] * 300))
    english_left = [item.prompt.split("English: ")[1].split("\n")[0] for item in some]
    assert sum(score.reward for score in task.score(some, english_left)) / 300 < 0.1


@pytest.mark.parametrize(
    ("number", "en", "de"),
    [
        (1, "one", "eins"),
        (16, "sixteen", "sechzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (101, "one hundred and one", "einhunderteins"),
        (777, "seven hundred and seventy-seven", "siebenhundertsiebenundsiebzig"),
        (1001, "one thousand and one", "eintausendeins"),
        (2350, "two thousand three hundred and fifty", "zweitausenddreihundertfünfzig"),
        (101_000, "one hundred and one thousand", "einhunderteintausend"),
        (
            316_212,
            "three hundred and sixteen thousand two hundred and twelve",
            "dreihundertsechzehntausendzweihundertzwölf",
        ),
    ],
)
def test_numbers_in_words(number, en, de):
    assert (english_number(number), german_number(number)) == (en, de)


def test_numbers_in_words_are_all_different_and_so_are_the_days():
    for words in (english_number, german_number):
        assert len({words(n) for n in range(20_000)}) == 20_000
    for ordinal in (english_ordinal, german_ordinal):
        assert len({ordinal(n) for n in range(1, 32)}) == 31
    assert [english_ordinal(n) for n in (1, 12, 20, 21, 30)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty-first",
        "thirtieth",
    ]
    assert [german_ordinal(n) for n in (1, 3, 7, 19, 20, 21)] == [
        "erste",
        "dritte",
        "siebte",
        "neunzehnte",
        "zwanzigste",
        "einundzwanzigste",
    ]


@pytest.fixture(scope="module")
def in_another_process() -> dict[str, str]:
    """Each task's name -> the hash of its items, in a process with other hashes of strings."""
    code = (
        "import hashlib, importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    task = getattr(importlib.import_module(f'rlgkd.envs.tasks.{name}'), name)()\n"
        "    text = repr([task.item(split, 3, n) for split in ('train', 'test') for n in range(200)])\n"
        "    print(name, hashlib.sha256(text.encode()).hexdigest())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    command = [sys.executable, "-c", code, *TASKS, "guess"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in printed.splitlines())


@pytest.mark.parametrize("name", [*TASKS, "guess"])
def test_items_repeat_in_another_process_and_no_two_splits_share_a_prompt(in_another_process, name):
    task = {**TASKS, "guess": guess}[name]()
    here = repr([task.item(split, 3, n) for split in ("train", "test") for n in range(200)])
    assert in_another_process[name] == hashlib.sha256(here.encode()).hexdigest()
    prompts = {split: {item.prompt for item in items(task, split)} for split in ("train", "validation", "test")}
    assert not prompts["train"] & prompts["test"] and not prompts["train"] & prompts["validation"]
    assert not prompts["test"] & prompts["validation"]
    assert items(task, seed=1, number=5) != items(task, seed=2, number=5)
    with pytest.raises(DataError, match="split"):
        task.size("dev")


@pytest.mark.parametrize(
    ("make", "settings"), [(arithmetic, {"steps": 0}), (arithmetic, {"steps": 9}), (translate, {"digits": 7})]
)
def test_a_difficulty_that_there_is_not_is_refused(make, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        make(**settings)
