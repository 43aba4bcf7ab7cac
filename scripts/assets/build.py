"""Builds the embedded models from nothing: tokenizers, teachers, students, the entailment classifier.

    python scripts/build_assets.py [--only STAGE] [--out rlgkd/assets]

A stage is named like the folder that it writes. Everything is drawn from the procedural tasks with fixed seeds; each
model gets a card (README.md) with its data, steps, time and scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rlgkd.scripts.assets import grounded, procedural
from rlgkd.scripts.assets.training import SEED

STAGES: dict[str, Callable[[Path, float], None]] = {
    "grounded-teacher": grounded.build_teacher,
    "grounded-student": grounded.build_student,
    "grounded-nli": grounded.build_classifier,
    **{
        f"{task}-{role}": partial(procedural.build, task, role)
        for task in procedural.TASKS
        for role in ("teacher", "student")
    },
}
"""Stage -> its function of the folder of all models and the share of the steps; each after those that it builds on."""


def main() -> None:
    """Build all stages in order, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STAGES, help="build this stage alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "rlgkd" / "assets")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, stage in STAGES.items():
        if arguments.only in (None, name):
            torch.manual_seed(SEED)
            stage(arguments.out, arguments.scale)


if __name__ == "__main__":
    main()
