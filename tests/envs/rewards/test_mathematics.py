"""The reward by math-verify: what is equal as mathematics, what fails, and that no text of a policy does any harm."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import pytest

from rlgkd.envs.rewards.mathematics import Mathematics, mathematics
from rlgkd.envs.rewards.registry import reward_from
from rlgkd.errors import DependencyError

installed = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


@pytest.fixture(scope="module")
def reward() -> Mathematics:
    return mathematics(timeout=20)


@installed
@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        (r"Half of it, so \boxed{\frac{1}{2}}.", "1/2", 1.0),
        (r"$x = 0.5$", r"$\frac12$", 1.0),
        (r"First $3$, then \(2\sqrt{2}\)", r"\sqrt{8}", 1.0),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1.0),
        (r"\boxed{4} and not $5$", "4", 1.0),
        (r"\boxed{3}", "4", 0.0),
        (r"\boxed{3} or \boxed{4}", "4", 0.0),
        ("The answer is 4.", "4", 0.0),
        ("", "4", 0.0),
        (r"\boxed{", "4", 0.0),
        (r"\boxed{\frac{1}{0}}", "4", 0.0),
    ],
)
def test_what_is_equal_as_mathematics_is_right(
    reward: Mathematics, completion: str, reference: str, right: float
) -> None:
    assert reward([completion], [reference]) == [right]


@installed
def test_any_of_several_right_answers_will_do(reward: Mathematics) -> None:
    assert reward([r"\boxed{2}"] * 2, [("1", "2"), ("1", "3")]) == [1.0, 0.0]


@installed
def test_a_text_is_never_run_as_python(reward: Mathematics, tmp_path: Path) -> None:
    call = f"__import__('pathlib').Path('{tmp_path}/ran').touch()"
    assert reward([call, f"${call}$", rf"\boxed{{{call}}}"], ["1"] * 3) == [0.0] * 3
    assert list(tmp_path.iterdir()) == []


@installed
def test_a_late_text_has_failed_and_the_next_one_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    few = mathematics(timeout=0.001)
    assert [type(one) for one in few([r"\boxed{1}"], ["1"])] == [TimeoutError]
    few._timeout = 20.0
    assert few([r"\boxed{1}", r"\boxed{2}"], ["1", "1"]) == [1.0, 0.0]


@installed
def test_what_fills_any_memory_or_hangs_costs_its_sample_alone() -> None:
    reward = mathematics(timeout=3)
    hard = r"\boxed{9^{9^{9^{9}}} - 9^{9^{9^{9}}} + 1}"
    first, second = reward([hard, r"\boxed{1}"], ["1", "1"])
    assert isinstance(first, Exception) or first in (0.0, 1.0)
    assert second == 1.0


@installed
def test_a_reference_that_is_no_mathematics_is_a_failure_with_its_reason(reward: Mathematics) -> None:
    (failure,) = reward([r"\boxed{1}"], ["@@"])
    assert isinstance(failure, ValueError) and "the reference '@@' is no mathematics" in str(failure)


@installed
def test_its_process_ends_with_it() -> None:
    reward = reward_from({"name": "mathematics", "timeout": 20})
    assert isinstance(reward, Mathematics) and reward([r"\boxed{1}"], ["1"]) == [1.0]
    worker = reward._worker
    assert worker is not None and worker.poll() is None
    del reward
    gc.collect()
    assert worker.poll() is not None


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"reward: 'mathematics' .*pip install 'rlgkd\[math\]'"):
        mathematics()
