"""A reward fails without harm: a failure costs its sample, is counted, and is never a number."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rlgkd import time_limit
from rlgkd.envs.rewards import Weighted, async_calls
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.user_errors import describe_failure
from rlgkd.errors import RewardError, SettingError
from rlgkd.failures import MIN_SAMPLES
from rlgkd.types import Item, Score

ITEMS = [
    Item(key="a", prompt="p0", reference="r0", columns={"answer": 3, "level": 1}),
    Item(key="b", prompt="p1", reference="r1", columns={"answer": 5}),
]
TEXTS = ["three", "five!"]


def graded(reward: Any, **settings: Any) -> list[Score]:
    return Grader(reward, **settings)(ITEMS, TEXTS)


def rewards_of(reward: Any, **settings: Any) -> list[float]:
    return [score.reward for score in graded(reward, **settings)]


@pytest.mark.parametrize(
    "returned",
    [[], [1.0], [1.0, 2.0, 3.0], None, 1.0, "12", ["1", "2"], {"a": 1, "b": 2}],
)
def test_a_return_value_without_one_number_for_each_completion_fails_all_of_them(returned: object) -> None:
    assert all(math.isnan(reward) for reward in rewards_of(lambda completions: returned))


@pytest.mark.parametrize("odd", [None, math.inf, math.nan, "1", [], ValueError("no")])
def test_a_value_that_is_no_number_fails_alone(odd: object) -> None:
    first, second = rewards_of(lambda completions: [odd, 1.0])
    assert math.isnan(first) and second == 1.0


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter])
def test_values_may_come_in_any_sequence(kind: Any) -> None:
    values = rewards_of(lambda completions: kind([0.5, 2.0]))
    assert values == [0.5, 2.0] and all(type(value) is float for value in values)


def test_scores_pass_through_with_their_parts() -> None:
    score = Score(reward=1.5, parts={"form": 1.0, "sense": 0.5})
    assert graded(lambda completions: [score, 2]) == [score, Score(reward=2.0)]


def test_a_failed_reward_stays_nan_and_does_not_become_zero() -> None:
    assert math.isnan(rewards_of(lambda completions: [math.nan, 1.0])[0])


def test_no_completions_need_no_call() -> None:
    assert Grader(lambda anything: 1 / 0)([], []) == []


def test_single_arguments_mean_one_call_for_each_sample_and_a_failure_costs_one() -> None:
    assert rewards_of(lambda completion, prompt: len(completion + prompt)) == [7.0, 7.0]
    assert rewards_of(lambda completion, answer: answer) == [3.0, 5.0]
    first, second = rewards_of(lambda completion: 1 / (completion != "three"))
    assert math.isnan(first) and second == 1.0


def test_an_async_reward_runs_its_samples_at_once_and_times_out_by_itself() -> None:
    async def slow(completion: str) -> float:
        await asyncio.sleep(0.2 if completion == "three" else 0.0)
        return float(len(completion))

    async def batched(completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    class Judge:
        async def __call__(self, completion: str) -> float:
            return 1.0

    assert rewards_of(batched) == [5.0, 5.0] and rewards_of(Judge()) == [1.0, 1.0]
    assert rewards_of(slow) == [5.0, 5.0]
    first, second = rewards_of(slow, timeout=0.05)
    assert math.isnan(first) and second == 5.0

    async def in_a_notebook() -> list[float]:
        return rewards_of(slow)

    assert asyncio.run(in_a_notebook()) == [5.0, 5.0]


def test_a_reward_that_hangs_is_stopped_and_leaves_nothing_running() -> None:
    threads = threading.active_count()

    def hangs(completions: list[str]) -> list[float]:
        while True:
            time.sleep(0.01)

    began = time.perf_counter()
    assert all(math.isnan(reward) for reward in rewards_of(hangs, timeout=0.2))
    assert time.perf_counter() - began < 2 and threading.active_count() == threads
    assert rewards_of(lambda completions: [1, 2], timeout=0.2) == [1.0, 2.0]
    time.sleep(0.3)  # the alarm of a reward that came in time does not ring afterwards


def test_none_of_a_thousand_faults_is_scored_as_a_number_or_stops_the_run() -> None:
    rng, threads = random.Random(0), threading.active_count()
    faults = {
        "raises": lambda: 1 / 0,
        "hangs": lambda: time.sleep(9),
        "nan": lambda: [math.nan] * 2,
        "few": lambda: [1.0],
        "garbage": lambda: "one, two",
        "none": lambda: None,
        "inf": lambda: [math.inf, -math.inf],
    }
    expected: list[bool] = []

    def reward(completions: list[str]) -> Any:
        expected.append(rng.random() < 0.5)
        if not expected[-1]:
            return [1.0, 2.0]
        return faults[rng.choice([name for name in faults if name != "hangs" or rng.random() < 0.05])]()

    grader = Grader(reward, timeout=0.3, max_failed=0.6)
    scores = []
    while sum(expected) < 1000:
        scores.append([score.reward for score in grader(ITEMS, TEXTS)])
    for failed, values in zip(expected, scores, strict=True):
        assert all(map(math.isnan, values)) if failed else values == [1.0, 2.0]
    assert grader.failed == 2 * sum(expected) and grader.scored == 2 * len(expected)
    assert threading.active_count() == threads


def test_above_its_share_of_failures_the_run_stops_with_the_first_one() -> None:
    calls = iter(range(1000))

    def reward(completion: str) -> float:
        number = next(calls)
        if number % 5 == 4:
            raise LookupError(f"sample {number}")
        return 1.0

    grader, scored = Grader(reward, max_failed=0.1), 0
    with pytest.raises(RewardError, match="max_failed_rewards; the first failure: LookupError: sample 4") as caught:
        for _ in range(MIN_SAMPLES):
            grader(ITEMS, TEXTS)
            scored += 2
    assert isinstance(caught.value.__cause__, LookupError) and MIN_SAMPLES - 2 <= scored <= MIN_SAMPLES
    tolerant = Grader(reward, max_failed=0.25)
    for _ in range(MIN_SAMPLES):
        tolerant(ITEMS, TEXTS)
    assert tolerant.failed / tolerant.scored == pytest.approx(0.2, abs=0.02) and tolerant.seconds > 0


def failing(shares: Sequence[float], size: int, **settings: Any) -> int:
    """Batches that go through, of a reward that fails for these shares of its batches in turn."""
    share = iter(shares)

    def reward(completions: list[str]) -> list[float]:
        failed = round(next(share) * len(completions))
        return [math.nan] * failed + [1.0] * (len(completions) - failed)

    grader = Grader(reward, **settings)
    for done in range(len(shares)):
        try:
            grader(ITEMS[:1] * size, ["a"] * size)
        except RewardError:
            return done
    return len(shares)


@pytest.mark.parametrize("first", [0.25, 1.0 - 1 / 64, 0.11])
def test_one_bad_batch_stops_nothing_whenever_it_comes(first: float) -> None:
    assert failing([first, *[0.0] * 20], 64) == 21
    assert failing([*[0.0] * 3, first, *[0.0] * 20], 64) == 24
    assert failing([*[0.0] * 3, 1.0, *[0.0] * 20], 64) == 24


def test_a_lasting_share_of_failures_stops_once_there_are_enough_samples_apart_from_the_worst_batch() -> None:
    assert failing([0.25] * 20, 64) == 4  # 4 batches of 64 apart from the worst, of which 64 failed
    assert failing([0.09] * 100, 100) == 100
    assert failing([0.25], MIN_SAMPLES) == 0  # one batch that is large enough speaks for itself
    assert failing([0.25], MIN_SAMPLES - 4) == 1


def test_a_reward_that_has_never_worked_stops_early_unless_all_may_fail() -> None:
    assert failing([1.0] * 20, 10) == 4  # in the fifth batch, of MIN_SAMPLES_ALL_FAILED samples
    assert failing([1.0] * 20, 64) == 0
    assert failing([1.0] * 20, 64, max_failed=1.0) == 20


def broken(completions: list[str]) -> list[float]:
    return deeper(completions)


def deeper(completions: list[str]) -> list[float]:
    return list(1 / (len(completions) - 2) for _ in completions)


async def later(completions: list[str]) -> list[float]:
    return deeper(completions)


class Few:
    def __call__(self, completions: list[str]) -> list[float]:
        return [1.0]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (broken, "ZeroDivisionError: .* \\(FILE:LINE, in deeper\\)"),
        (later, "ZeroDivisionError: .* \\(FILE:LINE, in deeper\\)"),
        (partial(broken), "in deeper"),
        (Few(), "ValueError: it returned 1 values for 2 completions \\(FILE:LINE, __call__\\)"),
        (lambda completions: [KeyError("a\nb")] * 2, "KeyError: .* \\(FILE:LINE, <lambda>\\)"),
    ],
)
def test_a_failure_is_logged_in_one_line_with_its_place_in_the_users_function(
    reward: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    graded(reward)
    (record,) = caplog.records
    pattern = words.replace("FILE", re.escape(__file__)).replace("LINE", r"\d+")
    assert re.search(pattern, record.getMessage()) and "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"timeout": 0.0}, "reward_timeout"), ({"max_failed": 2.0}, "max_failed_rewards"), ({"reward": 3}, "reward")],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as error:
        Grader(**{"reward": lambda completions: [], **settings})
    assert error.value.field == field


def test_an_exception_in_a_samples_place_is_the_cause_of_that_sample_alone(caplog: pytest.LogCaptureFixture) -> None:
    grader = Grader(lambda completions: [ValueError("no number"), 2.0], max_failed=1.0)
    first, second = grader(ITEMS, TEXTS)
    assert math.isnan(first.reward) and second.reward == 2.0 and grader.failed == 1
    assert (first.failure, second.failure) == ("ValueError: no number", "")
    (record,) = caplog.records
    assert "ValueError: no number (" in record.getMessage() and __file__ in record.getMessage()
    single = [
        score.reward for score in graded(lambda completion: KeyError(completion) if completion == "three" else 1.0)
    ]
    assert math.isnan(single[0]) and single[1] == 1.0


@pytest.mark.parametrize(
    "one",
    [
        np.bool_(True),
        np.array(1.0),
        np.array([1.0]),
        np.ones((1, 1)),
        torch.tensor(1.0),
        torch.ones(1, 1, requires_grad=True),
        torch.tensor(1.0, dtype=torch.bfloat16),
        Decimal(1),
        Fraction(1),
        Score(reward=np.float32(1)),  # type: ignore[arg-type]
    ],
)
def test_a_number_of_any_library_is_a_reward(one: Any) -> None:
    for reward in (lambda completion: one, lambda completions: [one, one]):
        for score in graded(reward):
            assert score.reward == 1.0 and type(score.reward) is float


@pytest.mark.parametrize(
    "two", [np.ones((2, 1)), torch.ones(2, 1), torch.ones(2, dtype=torch.int64), {1: 1, 2: 1}.values()]
)
def test_a_column_of_numbers_is_one_for_each_completion(two: Any) -> None:
    assert graded(lambda completions: two) == [Score(reward=1.0)] * 2


def test_the_numbers_within_a_score_become_floats() -> None:
    odd: Any = Score(reward=torch.tensor(3.0), parts={"a": np.float32(1)}, steps=(np.float64(1), Decimal(2)))
    for reward in (lambda completions, tokens: [odd, odd], lambda completion, tokens: odd):
        for score in Grader(reward)(ITEMS, TEXTS, tokens=[["a", "b"]] * 2):
            assert score == Score(reward=3.0, parts={"a": 1.0}, steps=(1.0, 2.0))
            assert [*map(type, (score.reward, *score.parts.values(), *(score.steps or ())))] == [float] * 4


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (10**400, "too large for a float"),
        (1e20, r"a reward of 1e\+20; divide or clip it"),
        (-1e155, r"a reward of -1e\+155; divide or clip it"),
        (math.inf, "an infinite reward; divide or clip it"),
        (Score(reward=1.0, parts={"a": math.inf}), "its part a is inf; divide or clip it"),
        (1j, "1j, which is no number"),
        (np.complex64(1), "which is no number"),
        ({"a": 1}, "{'a': 1}, which is no number"),
        ((1.0, {"a": 1}), "{'a': 1}, which is no number"),
        (np.array("1"), "which is no number"),
        (Score(reward=1.0, parts={"a": "x"}), "'x', which is no number"),  # type: ignore[dict-item]
        (None, "it abstained: it returned None"),
    ],
)
def test_a_value_that_is_no_reward_says_why_and_is_lost_alone(odd: Any, words: str) -> None:
    first, second = graded(lambda completions: [odd, 1.0])
    assert math.isnan(first.reward) and re.search(words, first.failure) and second.reward == 1.0


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({1.0, 2.0}, "it returned a set; return a list with a number for each completion"),
        ({"a": 1.0, "b": 2.0}, "it returned a dict; return a list"),
        ("12", "it returned a str; return a list"),
        (1.0, "it returned 1.0 for 2 completions; return a list"),
        (np.array(1.0), r"it returned array\(1.\) for 2 completions; return a list"),
        (None, "it returned None for 2 completions; return a list"),
    ],
)
def test_what_holds_no_number_for_each_completion_is_a_failure_that_says_so(returned: Any, words: str) -> None:
    assert all(
        math.isnan(score.reward) and re.search(words, score.failure) for score in graded(lambda completions: returned)
    )


class Waits:
    async def __call__(self, completions: list[str], scale: float = 1.0) -> list[float]:
        await asyncio.sleep(0)
        return [scale * len(text) for text in completions]


async def waits(completions: list[str], scale: float = 1.0) -> list[float]:
    return [scale * len(text) for text in completions]


async def waits_for_one(completion: str) -> float:
    await asyncio.sleep(0.2)
    return float(len(completion))


@functools.wraps(waits)
def wrapped(*given: Any, **named: Any) -> Any:
    return waits(*given, **named)


POOL = ThreadPoolExecutor(1)


@pytest.mark.parametrize(
    "reward",
    [
        partial(Waits(), scale=1.0),
        partial(partial(waits), scale=1.0),
        wrapped,
        lambda completions: waits(completions),
        lambda completions: [waits_for_one(text) for text in completions],
        lambda completions: (waits_for_one(text) for text in completions),
        lambda completion: waits_for_one(completion),
        lambda completions: [POOL.submit(len, text) for text in completions],
        lambda completion: POOL.submit(len, completion),
        Weighted({"a": (0.5, wrapped), "b": (0.5, lambda completion: waits_for_one(completion))}),
    ],
)
def test_what_has_to_be_awaited_is_awaited_in_whatever_form_it_comes(reward: Any) -> None:
    async def in_a_notebook() -> list[float]:
        return rewards_of(reward)

    assert rewards_of(reward) == asyncio.run(in_a_notebook()) == [5.0, 5.0]
    assert Grader(partial(Waits(), scale=2.0)).is_async and not Grader(wrapped).is_async


def test_one_awaitable_of_a_list_that_fails_costs_its_sample_alone() -> None:
    async def picky(text: str) -> float:
        if text == "three":
            sys.exit("why")
        return 1.0

    first, second = graded(lambda completions: [picky(text) for text in completions])
    assert first.failure == "SystemExit: why" and second.reward == 1.0


def resets(completion: str) -> float:
    signal.alarm(0)
    time.sleep(9)
    return 1.0


def catches(completion: str) -> float:
    try:
        time.sleep(9)
    except Exception:
        return 0.0
    return 1.0


def tries_again(completions: list[str]) -> list[float]:
    while True:
        try:
            time.sleep(9)
        except Exception:
            continue


def catches_all(completion: str) -> float:
    try:
        time.sleep(9)
    except BaseException:
        return 0.0
    return 1.0


async def never_waits(completion: str) -> float:
    time.sleep(0.3)
    return 1.0


async def stays(completions: list[str]) -> list[float]:
    while True:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError:
            return [1.0, 1.0]


async def in_a_thread(completions: list[str]) -> list[float]:
    await asyncio.to_thread(time.sleep, 0.3)
    return [1.0, 1.0]


@pytest.mark.parametrize("reward", [resets, catches, tries_again, catches_all, never_waits, stays, in_a_thread])
def test_a_late_reward_is_never_a_number_whatever_it_makes_of_its_limit(reward: Any) -> None:
    began = time.perf_counter()
    for score in graded(reward, timeout=0.1):
        assert math.isnan(score.reward) and "it took longer than 0.1 seconds" in score.failure
    assert time.perf_counter() - began < 2


def test_a_limit_is_held_in_other_threads_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    scores: list[Score] = []
    free = threading.Event()

    def hangs(completion: str) -> float:
        free.wait(9)
        return 1.0

    thread = threading.Thread(target=lambda: scores.extend(graded(hangs, timeout=0.1)))
    thread.start()
    thread.join(5)
    free.set()
    assert len(scores) == 2 and all(math.isnan(score.reward) for score in scores)
    assert sum("it goes on running in the background" in record.getMessage() for record in caplog.records) == 1


def test_an_async_reward_that_blocks_for_ever_is_abandoned_with_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_calls, "GRACE", 0.2)
    free = threading.Event()

    async def blocks(completion: str) -> float:
        free.wait(9)
        return 1.0

    scores = graded(blocks, timeout=0.1)
    free.set()
    assert all("took longer" in score.failure for score in scores)
    assert sum("it goes on running in the background" in record.getMessage() for record in caplog.records) == 1


def test_a_reward_that_cannot_be_interrupted_is_late_and_one_warning_says_that_it_is_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit, "AGAIN", 0.1)

    def stubborn(completion: str) -> float:
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            try:
                time.sleep(0.5)
            except BaseException:
                continue
        return 1.0

    assert all("took longer" in score.failure for score in graded(stubborn, timeout=0.1))
    assert sum("it cannot be interrupted" in record.getMessage() for record in caplog.records) == 1


def test_a_signal_that_comes_while_the_one_before_it_is_dealt_with_interrupts_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a long call into C, whose results take a while to be freed."""
    late = time_limit.late
    monkeypatch.setattr(time_limit, "AGAIN", 0.02)
    monkeypatch.setattr(time_limit, "late", lambda seconds: (time.sleep(0.2), late(seconds))[1])
    with pytest.raises(TimeoutError, match=r"it took longer than 0.05 seconds"):
        # The outer call's frame is there when the inner one is over.
        time_limit.call_within(9, lambda: time_limit.call_within(0.05, lambda: time.sleep(9), warn=print), warn=print)


def test_an_alarm_of_the_users_still_rings_and_its_handler_is_put_back() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        for pause in (0.0, 0.1):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert rewards_of(lambda completion, pause=pause: time.sleep(pause) or 1, timeout=1.0) == [1.0, 1.0]
            time.sleep(0.2)
        assert rang == [1, 1]
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [SystemExit("why"), asyncio.CancelledError("why"), GeneratorExit("why")])
def test_a_reward_that_exits_has_failed_with_its_reason(error: BaseException) -> None:
    def exits(completion: str) -> float:
        if completion == "three":
            raise error
        return 1.0

    async def exits_later(completion: str) -> float:
        await asyncio.sleep(0)
        return exits(completion)

    for reward in (exits, exits_later):
        for timeout in (None, 1.0):
            first, second = graded(reward, timeout=timeout)
            assert first.failure == f"{type(error).__name__}: why" and second.reward == 1.0


def test_ctrl_c_in_a_reward_still_stops() -> None:
    def interrupted(completion: str) -> float:
        raise KeyboardInterrupt

    async def interrupted_later(completion: str) -> float:
        raise KeyboardInterrupt

    for reward in (interrupted, interrupted_later):
        for timeout in (None, 1.0):
            with pytest.raises(KeyboardInterrupt):
                graded(reward, timeout=timeout)


def test_settings_of_torch_and_the_working_folder_that_a_reward_changes_are_put_back() -> None:
    def state() -> tuple[Any, ...]:
        modes = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
        return (*modes, torch.get_num_threads(), os.getcwd())

    before = state()

    def rude(completions: list[str]) -> list[float]:
        torch.set_grad_enabled(not before[0])
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_num_threads(before[3] + 1)
        os.chdir("/")
        return [1.0, 1 / (len(completions) - 2)]

    async def rude_later(completions: list[str]) -> list[float]:
        return rude(completions)

    for reward in (rude, rude_later):
        graded(reward)
        assert state() == before


def test_a_reward_runs_outside_of_autocast() -> None:
    weight = torch.ones(2, 2)

    def multiplies(completion: str) -> float:
        return float(torch.nn.functional.linear(weight, weight).dtype == torch.float32)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rewards_of(multiplies) == rewards_of(lambda completions: [multiplies(t) for t in completions]) == [1, 1]
        assert torch.is_autocast_enabled("cpu")


def test_an_exception_without_a_text_or_with_an_endless_one_is_described():
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def raises(error: Exception):
        def reward(completion: str) -> float:
            raise error

        return reward

    began = time.monotonic()
    for error in (Unprintable(), ValueError("x" * 10_000_000)):
        (score,) = Grader(raises(error))([Item(key="0", prompt="a")], ["b"])
        assert math.isnan(score.reward) and score.failure.startswith(f"{type(error).__name__}:")
        assert len(describe_failure(error, raises(error))) < 1000
    assert time.monotonic() - began < 5


class Odd:
    """A number of the user's own that cannot be had."""

    def __float__(self) -> float:
        return 1 / 0


def stops_its_loop(completions):
    async def stop():
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)

    return stop()


@pytest.mark.parametrize(
    ("reward", "rewards", "why"),
    [
        (lambda completions: np.ma.array([1.0, 2.0], mask=[False, True]), [1.0, math.nan], "masked"),
        (lambda completions: [Odd(), 1.0], [math.nan, 1.0], "a Odd, whose number cannot be had"),
        (stops_its_loop, [math.nan, math.nan], "stopped its event loop"),
    ],
)
def test_what_is_no_number_costs_its_own_sample(reward: Any, rewards: list[float], why: str) -> None:
    scores = graded(reward)
    assert [score.reward for score in scores] == pytest.approx(rewards, nan_ok=True)
    assert any(why in score.failure for score in scores)


def test_a_reward_that_enters_inference_mode_leaves_training_as_it_was() -> None:
    modes = []

    def enters(completions: Sequence[str]) -> list[float]:
        modes.append(torch.inference_mode())
        modes[-1].__enter__()
        return [1.0 for _ in completions]

    assert rewards_of(enters) == [1.0, 1.0]
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    (torch.ones(1, requires_grad=True) * 2).backward()


@pytest.mark.parametrize(("reward", "why"), [(lambda: 1.0, "takes no arguments"), (lambda *texts: 1.0, "no arguments")])
def test_a_reward_that_names_no_argument_is_refused(reward: Any, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        graded(reward)


def test_arguments_without_names_are_refused() -> None:
    def reward(completions, /):
        return [1.0, 1.0]

    with pytest.raises(SettingError, match="given by name"):
        graded(reward)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(SettingError, match="finite"):
        Weighted({"a": (weight, lambda completions: [1.0, 1.0])})


class Exits:
    """An object whose own methods raise what is no Exception."""

    def __float__(self) -> float:
        raise SystemExit(0)


class WithoutText:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "value",
    [Exits(), WithoutText(), Score(reward=1.0, parts={1: 1.0}), Score(reward=1.0, parts=[1.0])],  # type: ignore[dict-item,arg-type]
)
def test_a_value_whose_own_methods_raise_or_whose_parts_have_no_names_costs_its_sample(value: object) -> None:
    scores = graded(lambda completions: [value, 1.0])
    assert math.isnan(scores[0].reward) and scores[0].failure and scores[1].reward == 1.0
