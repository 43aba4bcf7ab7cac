"""Steps of rlgkd's agents, timed in a process of its own: `python -m rlgkd.scripts.benchmarks.step JOB.json`.

It prints one line of JSON: the seconds of each step, in which parts they went, the process's peak memory, and the
bound: the step's own products with the models' weights, run bare in the same process. A step is one update on texts
that the student has written for it. Attention's products, norms, sampling and the optimizer are not in the bound.
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
from rlgkd.envs import TextGenerationEnv
from rlgkd.errors import SettingError
from rlgkd.lm import LanguageModel, decode, fast, open_by_name
from rlgkd.lm.linear import autocast_weights, linear_without_grad, prepacked_linear, weight_gradients
from rlgkd.scripts.benchmarks.job import Job, peak_mb
from rlgkd.scripts.runs.allocator import keep_freed_memory, keep_freed_memory_after_first

KINDS = ("distill", "rl", "both", "generate")
REPEATS = 3
"""Of the bare products; the fastest counts, since a busy machine only adds."""


def measure(job: Job) -> dict[str, Any]:
    """Time the job's steps. Raises: SettingError for another kind of step."""
    if job.kind not in KINDS:
        raise SettingError("kind", job.kind, f"choose one of {', '.join(KINDS)}")
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    return _generate(job) if job.kind == "generate" else _train(job)


def _generate(job: Job) -> dict[str, Any]:
    lm = open_by_name(job.student)
    rows = [lm.tokenizer.encode(text) for text in job.prompts[: job.batch]]
    draws = np.random.default_rng(job.seed)
    seconds, tokens = [], []
    for _ in range(job.warmup + job.steps):
        uniforms_BT = draws.random((len(rows), job.new_tokens))
        began = time.perf_counter()
        written = decode(lm, rows, uniforms_BT=uniforms_BT, max_new_tokens=job.new_tokens)
        seconds.append(time.perf_counter() - began)
        tokens.append(sum(len(c.ids) for c in written))
    some = slice(job.warmup, None)
    bound = _writing(lm, sum(map(len, rows)), len(rows), job.new_tokens)
    return {"seconds": seconds[some], "tokens": tokens[some], "peak_mb": peak_mb(), "bound": bound}


def _train(job: Job) -> dict[str, Any]:
    agent = _agent(job)
    clock = _Clock(job.warmup, job.steps)
    tokens = job.batch * job.new_tokens
    keep_freed_memory_after_first(agent.policy.optimizer)
    agent.learn(total_timesteps=tokens * (job.warmup + job.steps), callback=clock)
    peak = peak_mb()
    with agent.autocast():
        bound = _bound(agent, job, clock.read[-1], clock.tokens[-1]) if job.bounded else math.nan
    return {
        "seconds": clock.seconds, "parts": clock.means(), "tokens": clock.tokens, "loss": clock.losses,
        "peak_mb": peak, "bound": bound,
    }  # fmt: skip


def _bound(agent: TextAlgorithm, job: Job, read: int, written: int) -> float:
    """Seconds of the bare products of an update that reads so many tokens of prompts and writes so many."""
    bound = _writing(agent.student, read // agent.config.sampling.group_size, job.batch, job.new_tokens)
    bound += bare(agent.student, read + written, written, backward=True)
    return bound + (0.0 if agent.teacher is None else bare(agent.teacher, read + written, written))


def _agent(job: Job) -> TextAlgorithm:
    kind, group = job.kind, job.group
    longest = max(len(ids) for ids in open_by_name(job.student).tokenizer(job.prompts)["input_ids"])
    env = TextGenerationEnv(
        prompts=job.prompts, reward=_odd_length, tokenizer=job.student, max_prompt_tokens=longest,
        max_new_tokens=job.new_tokens, split_shares=None,
    )  # fmt: skip
    common: dict[str, Any] = {
        "prompts_per_update": job.batch // group, "group_size": group, "learning_rate": 1e-5, "seed": job.seed,
        "device": "cpu",
    }  # fmt: skip
    if kind == "distill":
        common |= {"teacher": job.teacher, "divergence": "reverse_kl"}
        return Distill(job.student, env, **{**common, **job.settings})
    teacher: dict[str, Any] = {"teacher": job.teacher, "alpha": 0.5} if kind == "both" else {"alpha": 0.0}
    return GRPO(job.student, env, **{**common, "epochs": 1, **teacher, **job.settings})


def _odd_length(completions: Sequence[str]) -> list[float]:
    """A reward that costs nothing and differs within a group."""
    return [float(len(text) % 2) for text in completions]


class _Clock(BaseCallback):
    """Seconds of each update, and of its parts as the agent and the teacher tell them."""

    def __init__(self, warmup: int, steps: int) -> None:
        super().__init__()
        self.warmup, self.steps, self.passed = warmup, steps, -1
        self.seconds: list[float] = []
        self.parts: dict[str, list[float]] = {name: [] for name in ("generate", "teacher", "optimizer", "update")}
        self.tokens: list[int] = []
        self.read: list[int] = []
        self.losses: list[float] = []
        self.inside = {"teacher": 0.0, "optimizer": 0.0}

    def _on_training_start(self) -> None:
        agent = self.agent
        if agent.teacher is not None:
            agent.teacher.states = self._timed("teacher", agent.teacher.states)  # type: ignore[method-assign]
        agent.policy.optimizer.step = self._timed("optimizer", agent.policy.optimizer.step)  # type: ignore[method-assign]

    def _on_rollout_start(self) -> None:
        self._close()
        self.began = time.perf_counter()
        self.inside = dict.fromkeys(self.inside, 0.0)

    def _on_rollout_end(self) -> None:
        self.generated = time.perf_counter() - self.began

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._close()

    def _close(self) -> None:
        """The update before is over."""
        self.passed += 1
        if not self.warmup < self.passed <= self.warmup + self.steps:  # texts that end early leave tokens for more
            return
        seconds = time.perf_counter() - self.began
        rest = seconds - self.generated - sum(self.inside.values())
        self.seconds.append(seconds)
        for name, value in {"generate": self.generated, "update": rest, **self.inside}.items():
            self.parts[name].append(value)
        written = self.agent.trajectories
        self.tokens.append(sum(t.length for t in written))
        self.read.append(sum(len(t.tokens_T) - t.length for t in written))
        self.losses.append(float(self.agent.last_metrics["train/loss"]))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.inside[part] += time.perf_counter() - began

        return timed

    @property
    def agent(self) -> TextAlgorithm:
        assert isinstance(self.model, TextAlgorithm)
        return self.model

    def means(self) -> dict[str, float]:
        """Seconds of a step in each part; `update` is what the others leave: student, heads, loss, backward."""
        return {name: sum(values) / max(1, len(values)) for name, values in self.parts.items() if any(values)}


def _writing(lm: LanguageModel, read: int, rows: int, steps: int) -> float:
    """Seconds of the bare products of decoding: the prompts at once, then so many steps of so many rows."""
    products = [prepacked_linear([part.weight], [None], rows) for part in _linears(lm)]
    inputs = [torch.randn(rows, part.in_features) for part in _linears(lm)]
    return bare(lm, read, rows) + (steps - 1) * _best(lambda: [run(x) for run, x in zip(products, inputs, strict=True)])


def bare(lm: LanguageModel, tokens: int, actions: int, *, backward: bool = False) -> float:
    """Seconds of the products of the body's weights with so many tokens, and the head's with so many actions.

    Of the last layer only keys and values are made of all tokens. With `backward` those of the gradients of inputs and
    weights too.
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
        (rows, size): torch.randn(rows, size, dtype=work[0][0].dtype) for rows, size in sizes
    }
    return _best(run)


def _linears(lm: LanguageModel) -> dict[nn.Linear, bool]:
    """The linear layers, and whether only tokens whose states are asked for pass through them."""
    of_all = [part for part in lm.body.modules() if isinstance(part, nn.Linear)]
    found = dict.fromkeys(of_all, False)
    if fast.supported(lm.body, "forward"):
        last = lm.body.layers[-1]
        parts = [part for part in last.modules() if isinstance(part, nn.Linear)]
        found |= {part: part not in (last.self_attn.k_proj, last.self_attn.v_proj) for part in parts}
    return found | {lm.head: True}


@torch.inference_mode()
def _best(function: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(Path(sys.argv[1]).read_text())))))
