"""Steps of rlgkd's agents, timed in a process of its own: `python -m rlgkd.scripts.benchmarks.step JOB.json`.

It prints one line of JSON: the seconds of each step and of its parts, the process's peak memory, and the bound: the
time of the step's own matrix products with the models' weights, run bare in the same process. A step is one update on
completions that the student has sampled for it. Attention's products, norms, sampling and the optimizer are not in the
bound.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from rlgkd.agents import GRPO, Distill
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.devices import is_cuda, synchronize
from rlgkd.envs import TextGenerationEnv
from rlgkd.envs.rewards import rouge
from rlgkd.errors import SettingError
from rlgkd.lm import LanguageModel, decode, fast, open_by_name
from rlgkd.lm.linear import autocast_weights, linear_without_grad, prepacked_linear, weight_gradients
from rlgkd.lm.lora import has_adapters
from rlgkd.scripts._peak_memory import peak_mb
from rlgkd.scripts.benchmarks.held_out import HeldOut
from rlgkd.scripts.benchmarks.job import LORA_RANK, BenchmarkJob, read_job
from rlgkd.scripts.runs.allocator import keep_freed_memory, keep_freed_memory_after_first

KINDS = ("distill", "rl", "both", "sft", "generate")
REPEATS = 3
"""Repeats of the bare products; the fastest counts, since a busy machine only adds."""


def measure(job: BenchmarkJob) -> dict[str, Any]:
    """Time the job's steps.

    Raises: SettingError for another kind of step.
    """
    if job.kind not in KINDS:
        raise SettingError("kind", job.kind, f"choose one of {', '.join(KINDS)}")
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    return _time_generation(job) if job.kind == "generate" else _time_training(job)


def _time_generation(job: BenchmarkJob) -> dict[str, Any]:
    lm = open_by_name(job.student)
    rows = [lm.tokenizer.encode(text) for text in job.prompts[: job.batch]]
    rng = np.random.default_rng(job.seed)
    seconds = []
    tokens = []
    for _ in range(job.warmup + job.steps):
        uniforms_BT = rng.random((len(rows), job.new_tokens))
        start = time.perf_counter()
        completions = decode(lm, rows, uniforms_BT=uniforms_BT, max_new_tokens=job.new_tokens)
        seconds.append(time.perf_counter() - start)
        tokens.append(sum(len(c.ids) for c in completions))
    bound = _decoding_bound(lm, sum(map(len, rows)), len(rows), job.new_tokens)
    return {
        "seconds": seconds[job.warmup :],
        "tokens": tokens[job.warmup :],
        "peak_mb": peak_mb(),
        "bound": bound,
    }


def _time_training(job: BenchmarkJob) -> dict[str, Any]:
    agent = make_agent(job)
    clock = _Clock(job.warmup, job.steps, HeldOut(job) if job.held_out else None)
    adapters = has_adapters(agent.student.module)
    keep_freed_memory_after_first(agent.policy.optimizer, give_back_holes=adapters)
    timesteps = job.batch * job.new_tokens * (job.warmup + job.steps)
    agent.learn(total_timesteps=timesteps, callback=clock)
    peak = peak_mb()  # before the bound, which allocates on its own
    with agent.autocast():
        bound = _update_bound(agent, job, clock.prompt_tokens[-1], clock.tokens[-1]) if job.bounded else math.nan
    return {
        "seconds": clock.seconds,
        "parts": clock.part_means(),
        "tokens": clock.tokens,
        "loss": clock.losses,
        "peak_mb": peak,
        "peaks_mb": clock.peaks,
        **({"curve": clock.held_out.curve} if clock.held_out else {}),
        "bound": bound,
        **_device_figures(agent.device),
    }


def _device_figures(device: torch.device) -> dict[str, Any]:
    """The name of an accelerator and the most memory that tensors held on it; nothing of a CPU."""
    if not is_cuda(device):
        return {}
    return {
        "device": torch.cuda.get_device_name(device),
        "device_peak_mb": round(torch.cuda.max_memory_allocated(device) / 2**20),
    }


def make_agent(job: BenchmarkJob) -> TextAlgorithm:
    """Return the agent of a job's step, on an environment of its prompts."""
    longest = job.longest_prompt or max(
        len(ids) for ids in open_by_name(job.student).tokenizer(job.prompts)["input_ids"]
    )
    env = TextGenerationEnv(
        prompts=job.rows,
        reward=rouge("rougeL") if job.held_out else _odd_length,
        tokenizer=job.student,
        max_prompt_tokens=longest,
        max_new_tokens=job.new_tokens,
        split_shares=None,
    )
    settings: dict[str, Any] = {
        "prompts_per_update": job.batch // job.group,
        "group_size": job.group,
        "learning_rate": job.learning_rate,
        "precision": job.precision,
        "seed": job.seed,
        "device": "cpu",  # `device=auto` takes an accelerator
    }
    if job.kind == "sft":
        settings |= {"divergence": "forward_kl", "estimator": "sampled", "student_fraction": 0.0, "learning_rate": 1e-3}
        settings |= {"reduction": "token_mean", "lora_rank": LORA_RANK}
        return Distill(job.student, env, teacher=None, **{**settings, **job.settings})
    if job.kind == "distill":
        settings |= {"teacher": job.teacher, "divergence": "reverse_kl", "student_fraction": job.student_share}
        if job.held_out:  # as the peers' losses are reduced
            settings |= {"reduction": "token_mean"}
        return Distill(job.student, env, **{**settings, **job.settings})
    settings |= {"epochs": 1, "alpha": 0.0}
    if job.kind == "both":
        settings |= {"teacher": job.teacher, "alpha": 0.5}
    return GRPO(job.student, env, **{**settings, **job.settings})


def _odd_length(completions: Sequence[str]) -> list[float]:
    """Return a reward that costs nothing and differs within a group."""
    return [float(len(text) % 2) for text in completions]


class _Clock(BaseCallback):
    """Seconds of each update and of its parts, taken around the agent's, the teacher's and the optimizer's calls."""

    def __init__(self, warmup: int, steps: int, held_out: HeldOut | None = None) -> None:
        super().__init__()
        self.warmup = warmup
        self.steps = steps
        self.held_out = held_out
        self.updates = -1
        self.seconds: list[float] = []
        self.parts: dict[str, list[float]] = {name: [] for name in ("generate", "teacher", "optimizer", "update")}
        self.tokens: list[int] = []
        self.prompt_tokens: list[int] = []
        self.losses: list[float] = []
        self.peaks: list[float] = []
        """The most memory of the process up to each timed update, in MiB."""
        self.inside = {"teacher": 0.0, "optimizer": 0.0}
        """Seconds of the update in progress."""

    @property
    def agent(self) -> TextAlgorithm:
        assert isinstance(self.model, TextAlgorithm)
        return self.model

    def part_means(self) -> dict[str, float]:
        """Return the mean seconds of each part; `update` is what the others leave: student, heads, loss, backward."""
        return {name: sum(values) / max(1, len(values)) for name, values in self.parts.items() if any(values)}

    def _on_training_start(self) -> None:
        agent = self.agent
        if isinstance(agent.teacher, LanguageModel):
            agent.teacher.states = self._timed("teacher", agent.teacher.states)  # type: ignore[method-assign]
        agent.policy.optimizer.step = self._timed("optimizer", agent.policy.optimizer.step)  # type: ignore[method-assign]

    def _on_rollout_start(self) -> None:
        self._close_update()
        self.start = time.perf_counter()
        self.inside = dict.fromkeys(self.inside, 0.0)

    def _on_rollout_end(self) -> None:
        self.generated = time.perf_counter() - self.start

    def _on_step(self) -> bool:
        return self.updates < self.warmup + self.steps

    def _on_training_end(self) -> None:
        self._close_update()

    def _close_update(self) -> None:
        """Record the update that has just ended, if it is one of the job's."""
        self.updates += 1
        # Completions that end early leave tokens for more updates than there are steps.
        if self.updates > self.warmup + self.steps:
            return
        if self.updates > self.warmup:
            self._record()
        if self.held_out is not None:
            self.held_out.measure(self.updates, sum(self.seconds), self.agent.student)

    def _record(self) -> None:
        seconds = time.perf_counter() - self.start
        rest = seconds - self.generated - sum(self.inside.values())
        self.seconds.append(seconds)
        for name, value in {"generate": self.generated, "update": rest, **self.inside}.items():
            self.parts[name].append(value)
        trajectories = self.agent.trajectories
        self.tokens.append(sum(t.length for t in trajectories))
        self.prompt_tokens.append(sum(len(t.tokens_T) - t.length for t in trajectories))
        self.losses.append(float(self.agent.last_metrics["train/loss"]))
        self.peaks.append(peak_mb())

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self.agent.device)
                self.inside[part] += time.perf_counter() - start

        return timed


def _update_bound(agent: TextAlgorithm, job: BenchmarkJob, prompt_tokens: int, new_tokens: int) -> float:
    """Return the seconds of the bare products of an update over so many tokens of prompts and new ones."""
    tokens = prompt_tokens + new_tokens
    bound = _decoding_bound(agent.student, prompt_tokens // agent.config.sampling.group_size, job.batch, job.new_tokens)
    bound += bare_products(agent.student, tokens, new_tokens, backward=True)
    if isinstance(agent.teacher, LanguageModel):
        bound += bare_products(agent.teacher, tokens, new_tokens)
    return bound


def _decoding_bound(lm: LanguageModel, prompt_tokens: int, rows: int, steps: int) -> float:
    """Return the seconds of the bare products of decoding: the prefill, then so many steps of so many rows."""
    products = [prepacked_linear([part.weight], [None], rows) for part in _linears(lm)]
    inputs = [torch.randn(rows, part.in_features, device=lm.device) for part in _linears(lm)]
    prefill = bare_products(lm, prompt_tokens, rows)
    step = _best_seconds(lambda: [run(x) for run, x in zip(products, inputs, strict=True)], lm.device)
    return prefill + (steps - 1) * step


def bare_products(lm: LanguageModel, tokens: int, actions: int, *, backward: bool = False) -> float:
    """Return the seconds of the products of the body's weights with so many tokens, and the head's with the actions.

    The last layer makes only keys and values of all tokens. With `backward`, the products of the gradients of inputs
    and weights are added.
    """
    work = [
        (autocast_weights(part.weight.detach(), None)[0], actions if few else tokens)
        for part, few in _linears(lm).items()
    ]

    def run() -> None:
        for weight, rows in work:
            x, made = inputs[rows, weight.shape[1]], inputs[rows, weight.shape[0]]
            linear_without_grad(x, weight)
            if backward:
                linear_without_grad(made, weight.T)
                weight_gradients([made], x)

    sizes = {(rows, size) for weight, rows in work for size in weight.shape}
    inputs: dict[tuple[int, int], Tensor] = {
        (rows, size): torch.randn(rows, size, dtype=work[0][0].dtype, device=lm.device) for rows, size in sizes
    }
    return _best_seconds(run, lm.device)


def _linears(lm: LanguageModel) -> dict[nn.Linear, bool]:
    """Return the linear layers, each with whether only the tokens whose states are asked for pass through it."""
    of_all = [part for part in lm.body.modules() if isinstance(part, nn.Linear)]
    found = dict.fromkeys(of_all, False)
    if fast.supported(lm.body, "forward"):
        last = lm.body.layers[-1]
        parts = [part for part in last.modules() if isinstance(part, nn.Linear)]
        found |= {part: part not in (last.self_attn.k_proj, last.self_attn.v_proj) for part in parts}
    return found | {lm.head: True}


@torch.inference_mode()
def _best_seconds(function: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    print(json.dumps(measure(read_job(Path(sys.argv[1])))))
