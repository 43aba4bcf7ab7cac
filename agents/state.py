"""What moves during training besides weights and optimizer: all that a run needs to go on exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rlgkd.agents.waiting import WaitingTexts
from rlgkd.ops.running_mean_std import RunningMeanStd


@dataclass
class TrainingState:
    """How far training has come. A checkpoint holds it as JSON, with weights and optimizer.

    Nothing random is in it: a sample's random numbers belong to (seed, item, stream index, sample number), the coin of
    `student_fraction` to (seed, update), the order of items to the seed.
    """

    timesteps: int = 0
    """Tokens that were generated, or read from data."""
    updates: int = 0
    next_prompt: int = 0
    """Stream index of the next update's first prompt."""
    alpha: float | None = None
    """Alpha where `divergence_target` has steered it; None while it is the setting's."""
    rewards: RunningMeanStd = field(default_factory=RunningMeanStd)
    """Mean and deviation of all rewards of on-policy texts."""
    replay: list[Any] = field(default_factory=list)
    """Texts of earlier updates as JSON values, a list for each prompt, the newest last (rlgkd.agents.replay)."""
    pass_rates: dict[str, float] = field(default_factory=dict)
    """Running shares of right texts by the prompts' keys, where prompts are drawn by them (rlgkd.agents.pass_rates)."""
    waiting: WaitingTexts | None = None
    """Texts that servers have sampled for the next update already; None where there are none."""

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values; `from_json` takes them back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["rewards"] = dataclasses.astuple(self.rewards)
        values["waiting"] = None if self.waiting is None else self.waiting.to_json()
        return {
            name: value for name, value in values.items() if value or name not in ("replay", "pass_rates", "waiting")
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The state that `to_json` gave, also under the names of before the first release.

        Raises: TypeError, ValueError, KeyError or AttributeError for values that `to_json` does not give.
        """
        renamed = {"cursor": "next_prompt", "rewards_seen": "rewards"}
        given = {renamed.get(name, name): value for name, value in values.items()}
        if not isinstance(given.get("rewards", ()), list | tuple) or len(given.get("rewards", ())) not in (0, 3):
            raise TypeError(f"its rewards are {given['rewards']!r}")
        if not isinstance(given.get("replay", []), list):
            raise TypeError(f"its replay is {given['replay']!r:.60}")
        rates = given.get("pass_rates", {})
        if any(type(rate) not in (int, float) or not 0 <= rate <= 1 for rate in rates.values()):
            raise ValueError(f"its pass_rates are {rates!r:.60}")
        waiting = given.get("waiting")
        given |= {"waiting": None if waiting is None else WaitingTexts.from_json(waiting)}
        state = cls(**given | {"rewards": RunningMeanStd(*given.get("rewards", ()))})
        counts = (state.timesteps, state.updates, state.next_prompt, state.rewards.count)
        numbers = (0 if state.alpha is None else state.alpha, state.rewards.mean, state.rewards.squared_deviations)
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"its counts are {counts}")
        if any(type(number) not in (int, float) or not math.isfinite(number) for number in numbers):
            raise ValueError(f"its numbers are {numbers}")
        if not 0 <= numbers[0] <= 1:
            raise ValueError(f"its alpha is {state.alpha}")
        return state
