"""Workloads of whole training steps, each run in a process of its own, alternating with a peer's on the same work.

Models, prompts, numbers of tokens and threads are the same for both. A ratio is the median over pairs of runs that are
neighbours in time, so that what else the machine does weighs on both. The models' end token is replaced by one that
they do not sample: all completions have exactly the length that the workload says.
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

from rlgkd.envs.tasks.docstrings import docstring_summary
from rlgkd.envs.tasks.grounded.env import grounded_summary
from rlgkd.errors import ModelError
from rlgkd.lm import load, load_tokenizer, save

STEP_RUNNER, PARTS_RUNNER = "rlgkd.scripts.benchmarks.step", "rlgkd.scripts.benchmarks.parts"
PEER_RUNNERS = {"trl": "rlgkd.scripts.benchmarks.peer_trl"}
PEERS: dict[str, dict[str, Sequence[tuple[str, str]]]] = {
    "trl": {
        "distill": [("DistillationTrainer", "distill"), ("GKDTrainer", "gkd")],
        "rl": [("GRPOTrainer", "rl")],
        "generate": [("transformers generate", "generate")],
        "sft": [("SFTTrainer", "sft")],
        "both": [],
    }
}
"""Peer -> kind of workload -> what the peer has for it: its name and the kind that its runner takes."""
PROMPT_TOKENS = 40
"""Tokens of a prompt, about."""
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "teacher": "smollm2-135m",
        "student": "smollm2-135m",
        "layers": [0, 4, 8, 13, 17, 21, 25, 29],
        "end": "<file_sep>",
    },
    "embedded": {
        "teacher": "embedded:grounded-teacher",
        "student": "embedded:grounded-student",
        "layers": (),
        "end": "<|pad|>",
    },
}
"""Models, the layers that the student keeps, and the end token."""
BATCHES = {"smollm2": 8, "embedded": 32}
STEPS: dict[str, dict[str, int]] = {"smollm2": {"steps": 3, "warmup": 1}, "embedded": {"steps": 12, "warmup": 3}}
"""Steps of one run: short ones vary more, and the first prepare what the others use."""
STEP_WORKLOADS: dict[str, dict[str, Any]] = {
    f"{family}-{kind}": {"kind": kind, "batch": batch, "group": 4 if kind in ("rl", "both") else 1, "new_tokens": 64}
    for family, batch in BATCHES.items()
    for kind in ("distill", "rl", "both", "generate")
} | {
    "smollm2-sft": {
        "kind": "sft",
        "batch": 16,
        "group": 1,
        "new_tokens": 32,
        "warmup": 5,
        "steps": 195,
        "bounded": False,
    }
}
GROWTH_BATCHES, GROWTH_LENGTHS = (8, 16, 32, 64), (32, 64, 128, 256, 512)
MEMORY_FACTORS = (1, 4, 16)
"""Multiples of the batch for which the memory of the loss is measured."""
DOCSTRINGS = 1024
THREADS = 2


def step(workload: str, *, settings: Mapping[str, Any] | None = None, peer: str = "", pairs: int = 3) -> dict[str, Any]:
    """Return the median seconds of a step, its parts, and the ratios to the peer's; `settings` are of rlgkd's agent.

    Raises: ModelError for a run that fails.
    """
    with prepared_job(workload, settings=settings or {}) as (job, folder):
        rivals = PEERS[peer][job["kind"]] if peer else []
        ours: list[dict[str, Any]] = []
        theirs: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in rivals}
        for _ in range(pairs):
            ours.append(run_job(job, STEP_RUNNER, folder))
            for name, kind in rivals:
                theirs[name].append(run_job({**job, "kind": kind}, PEER_RUNNERS[peer], folder))
    return {**summarise(ours), "peers": {name: compare_with_peer(runs, ours) for name, runs in theirs.items()}}


def growth() -> dict[str, Any]:
    """Return the seconds of a distilling step over batch and length, and the powers of them that they grow with.

    Raises: as `step`.
    """
    seconds: dict[str, dict[int, float]] = {"batch": {}, "new_tokens": {}}
    with prepared_job("smollm2-distill", steps=1, bounded=False) as (job, folder):
        for name, sizes in (("batch", GROWTH_BATCHES), ("new_tokens", GROWTH_LENGTHS)):
            for size in sizes:
                measured = run_job({**job, name: size}, STEP_RUNNER, folder)
                seconds[name][size] = round(min(measured["seconds"]), 3)
    powers = {f"power_of_{name}": round(growth_power(by_size), 3) for name, by_size in seconds.items()}
    return {**seconds, **powers}


def growth_power(seconds: Mapping[int, float]) -> float:
    """Return p of seconds ~ size^p, from the smallest and the largest size.

    Examples:
        >>> growth_power({8: 1.0, 16: 7.0, 32: 16.0})
        2.0
    """
    sizes = list(seconds)
    return math.log(seconds[sizes[-1]] / seconds[sizes[0]]) / math.log(sizes[-1] / sizes[0])


def ragged() -> dict[str, Any]:
    """Return how many times as long padded completions take, decoded all at once and half of them at a time.

    Raises: as `step`.
    """
    measured: dict[str, list[dict[str, Any]]] = {}
    for family, batch in (("smollm2", 16), ("embedded", 64)):
        measured[family] = []
        for at_once in (batch, batch // 2):
            changes = {"kind": "ragged", "batch": batch, "steps": 5, "settings": {"rows_at_once": at_once}}
            with prepared_job(f"{family}-distill", **changes) as (job, folder):
                run = run_job(job, PARTS_RUNNER, folder)
            ratios = [padded / own for padded, own in zip(run["padded"], run["ragged"], strict=True)]
            measured[family].append(
                {
                    "rows": batch,
                    "rows_at_once": at_once,
                    "times_as_long": round(statistics.median(ratios), 2),
                    "seconds": round(statistics.median(run["ragged"]), 4),
                    "mean_length": round(statistics.mean(run["lengths"]), 1),
                    "limit": job["new_tokens"],
                }
            )
    return measured


def memory() -> dict[str, Any]:
    """Return the MiB that head and divergence take, and those of one tensor of logits. Raises: as `step`."""
    sizes = []
    with prepared_job("smollm2-distill", kind="loss") as (job, folder):
        for factor in MEMORY_FACTORS:
            measured = run_job({**job, "batch": factor * job["batch"]}, PARTS_RUNNER, folder)
            sizes.append({name: round(value) for name, value in measured.items()})
    return {"sizes": sizes}


@contextmanager
def prepared_job(workload: str, **changes: Any) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield a workload's job and the folder of its models, which is deleted afterwards."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        family = workload.split("-")[0]
        job = {**STEPS[family], "threads": THREADS, "seed": 0, **STEP_WORKLOADS[workload], **changes}
        job |= _models_and_prompts(family, folder)
        yield {**job, **(_docstrings(folder) if job["kind"] == "sft" else {})}, folder


def _docstrings(folder: Path) -> dict[str, Any]:
    """The job's part for SFT: docstrings of installed libraries of uneven lengths, for the whole model to learn."""
    task = docstring_summary(tokenizer=str(folder / "teacher"))
    items = [task.item("train", 0, index) for index in range(DOCSTRINGS)]
    prompts = [f"{item.prompt}\n" for item in items]
    return {"student": str(folder / "teacher"), "prompts": prompts, "references": [item.reference for item in items]}


def _models_and_prompts(family: str, folder: Path) -> dict[str, Any]:
    """Save the family's models with their end token replaced, and cut prompts; return the job's part of it."""
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
    prompts = []
    for index in range(8 * BATCHES[family]):
        ids = tokenizer.encode(task.item("train", 0, index).prompt)
        prompts.append(tokenizer.decode(ids[:PROMPT_TOKENS]))
    return {"student": str(folder / "student"), "teacher": str(folder / "teacher"), "prompts": prompts}


def run_job(job: Mapping[str, Any], runner: str, folder: Path) -> dict[str, Any]:
    """Return what a runner prints of a job, in a process of its own.

    Raises: ModelError with the process's last line if it fails.
    """
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    done = subprocess.run([sys.executable, "-m", runner, str(file)], capture_output=True, text=True)
    if done.returncode:
        raise ModelError("benchmark", job["kind"], (done.stderr.strip().splitlines() or ["it was ended"])[-1])
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one line for several runs of the same job: the median of times, the most of memory."""
    seconds = statistics.median(seconds for run in runs for seconds in run["seconds"])
    tokens = statistics.median(tokens for run in runs for tokens in run["tokens"])
    bound = min(run["bound"] for run in runs)
    bounded = not math.isnan(bound)
    parts = {name: statistics.median(run["parts"][name] for run in runs) for name in runs[0].get("parts", ())}
    of_the_bound = statistics.median(run["bound"] / statistics.median(run["seconds"]) for run in runs)
    return {
        "seconds": round(seconds, 4),
        "parts": {name: round(value, 4) for name, value in parts.items()},
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        **_peaks(runs),
        **({"bound_seconds": round(bound, 4), "of_the_bound": round(of_the_bound, 3)} if bounded else {}),
        **{name: runs[0][name] for name in ("device", "device_peak_mb") if name in runs[0]},
    }


def _peaks(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The most memory in MiB, and how much of it came after the steps of the warm-up and the first timed one."""
    growth = [run["peaks_mb"][-1] / run["peaks_mb"][0] - 1.0 for run in runs if run.get("peaks_mb")]
    peak = {"peak_mb": round(max(run["peak_mb"] for run in runs))}
    return {**peak, "grown_since_warmup": round(max(growth), 3)} if growth else peak


def compare_with_peer(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a peer's medians, and how many times as much time and memory it takes."""
    ratios = [
        statistics.median(their_run["seconds"]) / statistics.median(our_run["seconds"])
        for their_run, our_run in zip(theirs, ours, strict=True)
    ]
    peak = max(run["peak_mb"] for run in theirs)
    return {
        "seconds": round(statistics.median(seconds for run in theirs for seconds in run["seconds"]), 4),
        "times_as_long": round(statistics.median(ratios), 2),
        "tokens": statistics.median(tokens for run in theirs for tokens in run["tokens"]),
        **_peaks(theirs),
        "memory_of_it": round(max(run["peak_mb"] for run in ours) / peak, 3),
        "versions": theirs[0]["versions"],
    }
