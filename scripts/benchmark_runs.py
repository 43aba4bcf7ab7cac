"""Workloads of whole training steps, each run in a process of its own, beside a peer's on the same work if asked.

Models, prompts, numbers of tokens and threads are the same for both. Their runs alternate, and a ratio is the median of
those of neighbours in time, so that what else the machine does weighs on both. The models' end token is one that they
do not write: all texts have exactly the length that the workload says.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlgkd.envs.grounded.env import grounded_summary
from rlgkd.errors import ModelError
from rlgkd.lm.loading import load, load_tokenizer, save

OURS = "rlgkd.scripts.benchmark_step"
PEERS: dict[str, dict[str, Sequence[tuple[str, str]]]] = {
    "trl": {
        "distill": [("DistillationTrainer", "distill"), ("GKDTrainer", "gkd")],
        "rl": [("GRPOTrainer", "rl")],
        "generate": [("transformers generate", "generate")],
        "both": [],
    }
}
"""Kind of workload -> what the peer has for it: its name and the kind that its runner knows."""
RUNNERS = {"trl": "rlgkd.scripts.benchmark_trl"}
PROMPT = 40
"""Tokens of a prompt, about."""
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm2": {"teacher": "smollm2-135m", "student": "smollm2-135m", "layers": [0, 4, 8, 13, 17, 21, 25, 29],
                "end": "<file_sep>"},
    "embedded": {"teacher": "embedded:grounded-teacher", "student": "embedded:grounded-student", "layers": (),
                 "end": "<|pad|>"},
}  # fmt: skip
"""Models, the layers that the student keeps, and the token that shall end texts."""
BATCHES = {"smollm2": 8, "embedded": 32}
WORKLOADS: dict[str, dict[str, Any]] = {
    f"{family}-{kind}": {"kind": kind, "batch": batch, "group": 4 if kind in ("rl", "both") else 1, "new_tokens": 64}
    for family, batch in BATCHES.items()
    for kind in ("distill", "rl", "both", "generate")
}


def step(workload: str, *, peer: str = "", pairs: int = 3, steps: int = 3, threads: int = 2) -> dict[str, Any]:
    """Median seconds of a step and where they went, and the ratios to the peer's.

    Raises: ModelError for a run that fails.
    """
    with TemporaryDirectory() as made:
        folder = Path(made)
        job = {**WORKLOADS[workload], **prepare(workload.split("-")[0], folder), "steps": steps, "warmup": 1,
               "threads": threads, "seed": 0}  # fmt: skip
        rivals = PEERS[peer][job["kind"]] if peer else []
        ours: list[dict[str, Any]] = []
        theirs: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in rivals}
        for _ in range(pairs):
            ours.append(run(job, OURS, folder))
            for name, kind in rivals:
                theirs[name].append(run({**job, "kind": kind}, RUNNERS[peer], folder))
    return {**summary(ours), "peers": {name: beside(runs, ours) for name, runs in theirs.items()}}


def prepare(family: str, folder: Path) -> dict[str, Any]:
    """Save the family's models with their end token changed, and cut prompts; returns the job's part of it."""
    models = FAMILIES[family]
    tokenizer = load_tokenizer(models["teacher"])
    tokenizer.eos_token = models["end"]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = models["end"]
    for role, layers in (("teacher", ()), ("student", models["layers"])):
        module = load(models[role], layers=layers)
        module.config.eos_token_id = module.generation_config.eos_token_id = tokenizer.eos_token_id
        save(module, tokenizer, folder / role)
    task = grounded_summary()
    prompts = [
        tokenizer.decode(tokenizer.encode(task.item("train", 0, place).prompt)[:PROMPT])
        for place in range(8 * BATCHES[family])
    ]
    return {"student": str(folder / "student"), "teacher": str(folder / "teacher"), "prompts": prompts}


def run(job: Mapping[str, Any], runner: str, folder: Path) -> dict[str, Any]:
    """What a runner prints of a job, in a process of its own. Raises: ModelError with its last line if it fails."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    done = subprocess.run([sys.executable, "-m", runner, str(file)], capture_output=True, text=True)
    if done.returncode:
        raise ModelError("benchmark", job["kind"], (done.stderr.strip().splitlines() or ["it was ended"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One line of several runs of the same job: of times the median, of memory the most."""
    seconds = statistics.median(seconds for one in runs for seconds in one["seconds"])
    tokens = statistics.median(tokens for one in runs for tokens in one["tokens"])
    bound = min(one["bound"] for one in runs)
    return {
        "seconds": round(seconds, 4),
        "parts": {
            name: round(statistics.median(one["parts"][name] for one in runs), 4) for name in runs[0].get("parts", ())
        },
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "peak_mb": round(max(one["peak_mb"] for one in runs)),
        "bound_seconds": round(bound, 4),
        "of_the_bound": round(statistics.median(one["bound"] / statistics.median(one["seconds"]) for one in runs), 3),
    }


def beside(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A peer's medians, and how many times as much it takes."""
    pairs = list(zip(theirs, ours, strict=True))
    return {
        "seconds": round(statistics.median(s for one in theirs for s in one["seconds"]), 4),
        "times_as_long": round(
            statistics.median(statistics.median(t["seconds"]) / statistics.median(o["seconds"]) for t, o in pairs), 2
        ),
        "tokens": statistics.median(tokens for one in theirs for tokens in one["tokens"]),
        "peak_mb": round(max(one["peak_mb"] for one in theirs)),
        "memory_of_it": round(max(o["peak_mb"] for o in ours) / max(t["peak_mb"] for t in theirs), 3),
        "versions": theirs[0]["versions"],
    }
