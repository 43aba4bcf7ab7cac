"""Workloads of whole training steps, each run in a process of its own, beside a peer's on the same work if asked.

Models, prompts, numbers of tokens and threads are the same for both. Their runs alternate, and a ratio is the median of
those of neighbours in time, so that what else the machine does weighs on both. The models' end token is one that they
do not write: all texts have exactly the length that the workload says.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlgkd.envs.tasks.grounded.env import grounded_summary
from rlgkd.errors import ModelError
from rlgkd.lm.loading import load, load_tokenizer, save

OURS, PARTS = "rlgkd.scripts.benchmarks.step", "rlgkd.scripts.benchmarks.parts"
PEERS: dict[str, dict[str, Sequence[tuple[str, str]]]] = {
    "trl": {
        "distill": [("DistillationTrainer", "distill"), ("GKDTrainer", "gkd")],
        "rl": [("GRPOTrainer", "rl")],
        "generate": [("transformers generate", "generate")],
        "both": [],
    }
}
"""Kind of workload -> what the peer has for it: its name and the kind that its runner knows."""
RUNNERS = {"trl": "rlgkd.scripts.benchmarks.peer_trl"}
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
STEPS: dict[str, dict[str, int]] = {"smollm2": {"steps": 3, "warmup": 1}, "embedded": {"steps": 12, "warmup": 3}}
"""Of a run: short ones vary more, and the first of them prepare what the others use."""
WORKLOADS: dict[str, dict[str, Any]] = {
    f"{family}-{kind}": {"kind": kind, "batch": batch, "group": 4 if kind in ("rl", "both") else 1, "new_tokens": 64}
    for family, batch in BATCHES.items()
    for kind in ("distill", "rl", "both", "generate")
}


BATCHES_GROWN, LENGTHS_GROWN = (8, 16, 32, 64), (32, 64, 128, 256, 512)
TIMES = (1, 4, 16)
"""The batch, for what the loss takes."""
THREADS = 2


def step(workload: str, *, settings: Mapping[str, Any] | None = None, peer: str = "", pairs: int = 3) -> dict[str, Any]:
    """Median seconds of a step and where they went, and the ratios to the peer's; `settings` are of rlgkd's agent.

    Raises: ModelError for a run that fails.
    """
    with jobs(workload, settings=settings or {}) as (job, folder):
        rivals = PEERS[peer][job["kind"]] if peer else []
        ours: list[dict[str, Any]] = []
        theirs: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in rivals}
        for _ in range(pairs):
            ours.append(run(job, OURS, folder))
            for name, kind in rivals:
                theirs[name].append(run({**job, "kind": kind}, RUNNERS[peer], folder))
    return {**summary(ours), "peers": {name: beside(runs, ours) for name, runs in theirs.items()}}


def growth() -> dict[str, Any]:
    """Seconds of a distilling step over batch and length, and the powers of them that they grow with.

    Raises: as `step`.
    """
    found: dict[str, dict[int, float]] = {"batch": {}, "new_tokens": {}}
    with jobs("smollm2-distill", steps=1, bounded=False) as (job, folder):
        for name, sizes in (("batch", BATCHES_GROWN), ("new_tokens", LENGTHS_GROWN)):
            for size in sizes:
                found[name][size] = round(min(run({**job, name: size}, OURS, folder)["seconds"]), 3)
    powers = {f"power_of_{name}": round(_power(seconds), 3) for name, seconds in found.items()}
    return {**found, **powers}


def _power(seconds: Mapping[int, float]) -> float:
    """p of seconds ~ size^p, from the ends."""
    (first, early), *_, (last, late) = seconds.items()
    return math.log(late / early) / math.log(last / first)


def ragged() -> dict[str, Any]:
    """How many times as long padded texts take as those of unequal lengths, written all at once and half at a time.

    Raises: as `step`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for family, batch in (("smollm2", 16), ("embedded", 64)):
        for at_once in (batch, batch // 2):
            settings = {"rows_at_once": at_once}
            with jobs(f"{family}-distill", kind="ragged", batch=batch, steps=5, settings=settings) as (job, folder):
                one = run(job, PARTS, folder)
            ratios = [padded / own for padded, own in zip(one["padded"], one["ragged"], strict=True)]
            found.setdefault(family, []).append({
                "rows": batch, "rows_at_once": at_once, "times_as_long": round(statistics.median(ratios), 2),
                "seconds": round(statistics.median(one["ragged"]), 4),
                "mean_length": round(statistics.mean(one["lengths"]), 1), "limit": job["new_tokens"],
            })  # fmt: skip
    return found


def memory() -> dict[str, Any]:
    """MiB that head and divergence take, beside those of one tensor of logits. Raises: as `step`."""
    found = []
    with jobs("smollm2-distill", kind="loss") as (job, folder):
        for times in TIMES:
            one = run({**job, "batch": times * job["batch"]}, PARTS, folder)
            found.append({name: round(value) for name, value in one.items()})
    return {"sizes": found}


@contextmanager
def jobs(workload: str, **changes: Any) -> Iterator[tuple[dict[str, Any], Path]]:
    """A workload's job and the folder of its models, for as long as it is run."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        family = workload.split("-")[0]
        job = {**WORKLOADS[workload], **STEPS[family], "threads": THREADS, "seed": 0, **changes}
        yield {**job, **prepare(family, folder)}, folder


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
