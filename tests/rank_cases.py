"""Trainings that tests/agents/test_ranks.py runs in one process and in two: `torchrun ... tests/rank_cases.py FOLDER`.

With `hybrid` after it, what runs in four.

Each case is an agent, some updates, and what is left of them: the tokens and rewards of every update, the metrics, the
weights.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import tiny
import torch
from safetensors.torch import save_file
from sampler_server import SamplerServer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from teacher_server import TeacherServer

from rlgkd import checkpoint, ranks
from rlgkd.agents import GRPO, PPO, Reinforce
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.state import TrainingState
from rlgkd.envs import TextTask
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import ProcessError, RewardError, SettingError
from rlgkd.sharding import full, is_sharded, local

UPDATES = 3
WORDS = [chr(letter) for letter in range(ord("A"), ord("L"))]
TOKENIZER = tiny.word_tokenizer(*WORDS)
PROMPTS = [
    {
        "prompt": " ".join(WORDS[(n + k) % 11] for k in range(1 + n % 4)),
        "reference": " ".join(WORDS[(2 * n + k) % 11] for k in range(2 + n % 3)),
    }
    for n in range(16)
]


def share_of_a(completions: list[str]) -> list[float]:
    """A reward that differs from text to text."""
    return [text.count("A") / 4 + text.count("B") / 8 for text in completions]


async def slow_share_of_a(completions: list[str]) -> list[float]:
    """The same, while the teacher's states are computed."""
    await asyncio.sleep(0.2)
    return share_of_a(completions)


def answer(item: object, turns: list[str]) -> str | None:
    """Say two words after a turn that is not the third."""
    return "C D" if len(turns) < 5 else None


def talk(**settings: Any) -> TextTask:
    given = {"prompts": PROMPTS, "tokenizer": TOKENIZER, "reward": share_of_a}
    return TextTask(**{**given, "max_new_tokens": 8, "max_prompt_tokens": 4, **settings})


def learner(
    kind: type[TextAlgorithm] = Reinforce, *, model: str = "llama", task: dict[str, Any] | None = None, **settings: Any
) -> TextAlgorithm:
    student, teacher = (tiny.model(model, vocabulary=len(WORDS) + 1, seed=seed) for seed in (0, 5))
    settings = {"alpha": 0.5, "learning_rate": 1e-3, "prompts_per_update": 8, "token_budget": 96, **settings}
    given = {"teacher": teacher, "gradient_norms_every": 2, **settings}
    return kind(student, TextVecEnv(talk(**(task or {}))), **given)


@cache
def teacher_url() -> str:
    """The address of a teacher that fails for some texts, which one process of the job serves until it ends."""
    server = TeacherServer(tiny.model(vocabulary=len(WORDS) + 1, seed=5), TOKENIZER, max_model_len=tiny.CONTEXT)
    server.fails = lambda tokens: sum(tokens) % 5 == 0
    Thread(target=server.serve_forever, daemon=True).start()
    return server.url


def taught_by_a_server(kind: type[TextAlgorithm] = Reinforce, **settings: Any) -> TextAlgorithm:
    url = ranks.join().from_main(teacher_url)
    return learner(kind, teacher=url, teacher_retries=0, max_failed_teacher=1.0, **settings)


@cache
def sampler_url() -> str:
    """The address of a sampler that fails for some prompts, which one process of the job serves until it ends."""
    server = SamplerServer(tiny.model(vocabulary=len(WORDS) + 1), TOKENIZER, max_model_len=tiny.CONTEXT)
    server.fails = lambda tokens: sum(tokens) % 5 == 0
    Thread(target=server.serve_forever, daemon=True).start()
    return server.url


def sampled_by_a_server(**settings: Any) -> TextAlgorithm:
    url = ranks.join().from_main(sampler_url)
    return learner(GRPO, sampler=url, sampler_retries=0, max_failed_sampler=1.0, max_mismatch=5.0, **settings)


CASES: dict[str, Callable[[Path], TextAlgorithm]] = {
    "reinforce": lambda _: learner(),
    "grpo, 2 epochs": lambda _: learner(GRPO, epochs=2, normalise_rewards=True, drop_even_groups=True),
    "ppo, 2 epochs": lambda _: learner(PPO, epochs=2),
    "divergence in the reward": lambda _: learner(
        combination="in_reward", divergence="reverse_kl", estimator="sampled", advantage="batch_normalised"
    ),
    "divergence in the reward of ppo": lambda _: learner(
        PPO, combination="in_reward", divergence="reverse_kl", estimator="sampled"
    ),
    "steered alpha and a horizon": lambda _: learner(divergence_target=0.3, horizon=0.5),
    "mixed prompts": lambda _: learner(mixture="prompt", student_fraction=0.5),
    "texts of the teacher": lambda folder: learner(
        mixture="prompt", student_fraction=0.3, off_policy="teacher", teacher_texts=folder / "texts.jsonl"
    ),
    "teacher that generates": lambda _: learner(student_fraction=0.3, off_policy="teacher"),
    "teacher that follows": lambda _: learner(teacher_decay=0.9),
    "teacher that reads a right text of the group": lambda _: learner(
        GRPO, teacher="self", teacher_decay=0.9, teacher_prompt="{sibling} {prompt}", prompts_per_update=5
    ),
    "lora": lambda _: learner(lora_rank=4),
    "ratio of a sequence": lambda _: learner(
        GRPO, reduction="token_mean", ratio="sequence", epochs=2, clip_low=3e-3, clip_high=4e-3
    ),
    "bfloat16": lambda _: learner(GRPO, precision="bfloat16", alpha=0.3),
    "7 prompts": lambda _: learner(prompts_per_update=7),
    "1 prompt": lambda _: learner(prompts_per_update=1),
    "t5": lambda _: learner(model="t5"),
    "several turns": lambda _: learner(task={"reply": answer, "max_new_tokens": 16}),
    "asynchronous reward": lambda _: learner(GRPO, task={"reward": slow_share_of_a}),
    "a gate of gaps": lambda _: learner(GRPO, gate="rlsd", alpha=0.3, epochs=2),
    "a served teacher that fails": lambda _: taught_by_a_server(
        teacher_top_k=5, horizon=0.5, mixture="prompt", student_fraction=0.6
    ),
    "a served teacher in the reward of ppo": lambda _: taught_by_a_server(
        PPO, combination="in_reward", divergence="reverse_kl", estimator="sampled", epochs=2
    ),
    "a served sampler that fails": lambda _: sampled_by_a_server(mixture="prompt", student_fraction=0.6),
    "a served sampler one update ahead": lambda _: sampled_by_a_server(
        staleness=1, policy_loss="clipped", sampler_weights="gloo", task={"reply": answer, "max_new_tokens": 16}
    ),
    "a gate that has the teacher answer": lambda _: learner(gate="tgopd", trusted_from=0.2),
    "a gate of ranks in the batch": lambda _: learner(gate="tip", student_fraction=0.6, mixture="prompt"),
    "student and teacher together": lambda _: learner(
        behaviour="teacher_mixed", teacher_share=0.4, policy_loss="clipped_weight"
    ),
    "sharded": lambda _: learner(GRPO, model="qwen2", sharding="full", epochs=2, gate="rlsd", alpha=0.3),
    "sharded ppo with the divergence in the reward": lambda _: learner(
        PPO, sharding="full", epochs=2, combination="in_reward", divergence="reverse_kl", estimator="sampled"
    ),
    "sharded gpt2, with gradient checkpointing": lambda _: learner(
        model="gpt2", sharding="full", gradient_checkpointing=True, learning_rate=2e-4
    ),
    "sharded, with texts of the teacher": lambda folder: learner(
        sharding="full",
        mixture="prompt",
        student_fraction=0.3,
        off_policy="teacher",
        teacher_texts=folder / "more.jsonl",
    ),
    "sharded, together with the teacher": lambda _: learner(
        sharding="full", behaviour="teacher_mixed", teacher_share=0.4, policy_loss="clipped_weight"
    ),
    "sharded, with a gate that has the teacher answer": lambda _: learner(
        sharding="full", gate="tgopd", trusted_from=0.2
    ),
    "sharded lora": lambda _: learner(sharding="full", lora_rank=4, teacher="self", teacher_decay=0.0),
    "sharded bfloat16": lambda _: learner(sharding="full", dtype="bfloat16", teacher_dtype="bfloat16", lora_rank=4),
    "sharded t5": lambda _: learner(model="t5", sharding="full", epochs=2, policy_loss="clipped"),
    "sharded t5, 1 prompt": lambda _: learner(model="t5", sharding="full", prompts_per_update=1, token_budget=32),
    "sharded, 1 prompt": lambda _: learner(sharding="full", prompts_per_update=1, token_budget=16),
    "sharded, with a served teacher that fails": lambda _: taught_by_a_server(
        sharding="full", teacher_top_k=5, prompts_per_update=5
    ),
    "sharded, with a served sampler one update ahead": lambda _: sampled_by_a_server(
        sharding="full", staleness=1, policy_loss="clipped", sampler_weights="gloo"
    ),
}


class Texts(BaseCallback):
    """Keeps what each update was made of, and ends after some."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[list[Any]] = []

    def _on_rollout_end(self) -> None:
        if not self.locals["going"]:
            return
        texts = [
            [t.item.key, t.item.prompt, t.sample, t.tokens_T.tolist(), t.score.reward] for t in self.model.trajectories
        ]
        self.updates.append([self.model.num_timesteps, texts])

    def _on_step(self) -> bool:
        return len(self.updates) < UPDATES


GRADIENT = "gradient of "
"""Begins the names of gradients among those of weights."""


def train(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the texts and metrics of all updates, and the weights after them, with the first step's gradient."""
    agent = CASES[name](folder)
    rows, texts = tiny.Rows(), Texts()
    gradient: dict[str, torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not gradient:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            gradient.update({f"{GRADIENT}{n}": full(value).clone() for n, value in enumerate(gradients)})

    agent.policy.optimizer.register_step_pre_hook(keep)
    agent.set_logger(Logger(None, [rows]))
    agent.learn(10**6, callback=texts)
    metrics = [{name: v for name, v in row.items() if not name.startswith("time/")} for row in rows.rows]
    weights = {name: full(value).clone() for name, value in agent.modules.state_dict().items()}
    return {"updates": texts.updates, "metrics": metrics, "state": agent.state.to_json()}, weights | gradient


RELAY = ("full", "none", "full")


def relay(folder: Path, shardings: tuple[str, ...] = RELAY, *, sharded: bool = False) -> list[Any]:
    """The texts of agents with these settings of `sharding`, each of which goes on from the checkpoint of the last.

    The checkpoints of those with shards are `sharded`, or all are whole.
    """
    updates: list[Any] = []
    for number, sharding in enumerate(shardings):
        agent, texts = learner(PPO, sharding=sharding), Texts()
        parts: dict[str, Any] = {"model": agent.modules, "optimizer": agent.policy.optimizer}
        if number:
            agent.state = TrainingState.from_json(checkpoint.load(folder / f"step-{number}", **parts))
        agent.learn(1, callback=texts, reset_num_timesteps=False)
        updates += texts.updates
        shares = is_sharded(agent.student.module)
        if shares or agent.ranks.main:
            how: dict[str, Any] = {"sharded": sharded and shares, "ranks": agent.ranks if shares else ranks.ALONE}
            checkpoint.save(folder / f"step-{number + 1}", **parts, state=agent.state.to_json(), **how)
        agent.ranks.together(lambda: None)  # it is whole before it is read
    agent.save(folder / "agent")
    return updates


def saved_adapters(folder: Path) -> None:
    """Save an agent that has trained adapters, merged and by themselves."""
    agent = learner(sharding="full", lora_rank=4, save_adapter=True)
    agent.learn(1)
    agent.save(folder)


def sizes(how: str) -> dict[str, int]:
    """Bytes of models and of the optimizer's moments that this process has, after an update."""
    agent = learner(sharding=how)
    agent.learn(1)
    moments = [value for of in agent.policy.optimizer.state.values() for value in of.values()]
    counted = {"student": agent.student.module.parameters(), "teacher": agent.teacher.module.parameters()}
    return {name: sum(local(x).nbytes for x in of) for name, of in {**counted, "moments": moments}.items()}


def failures() -> dict[str, str]:
    """What a process raises if one of them fails."""
    me = ranks.join()

    def bad_reward(completions: list[str]) -> list[float]:
        if me.rank == 1:
            raise OSError("no disk")
        return share_of_a(completions)

    def other_weights() -> None:
        student = tiny.model(vocabulary=len(WORDS) + 1, seed=me.rank)
        Reinforce(student, TextVecEnv(talk()), alpha=0.0)

    def one_stops() -> str:
        agent = learner()
        seen: list[int] = []

        class Stop(BaseCallback):
            def _on_step(self) -> bool:
                return me.rank == 0 or self.model.state.updates < 1

            def _on_rollout_end(self) -> None:
                seen.append(self.locals["going"])

        agent.learn(10**6, callback=Stop())
        return f"{agent.state.updates} updates, {seen}, {agent.num_timesteps}"

    def nested() -> None:
        me.together(lambda: me.gather(lambda: 1 // (1 - me.rank)))

    cases: dict[str, Callable[[], Any]] = {
        "reward": lambda: learner(task={"reward": bad_reward, "max_failed_rewards": 0.0}).learn(10**6),
        "weights": other_weights,
        "stop": one_stops,
        "nested": nested,
        "sharded teachers": lambda: learner(teacher={"one": tiny.model(vocabulary=len(WORDS) + 1)}, sharding="full"),
        "sharded predict": lambda: learner(sharding="full").predict(np.full((1, 12), 1)),
    }
    found = {}
    for name, run in cases.items():
        try:
            found[name] = str(run())
        except (RewardError, ProcessError, SettingError, ZeroDivisionError) as error:
            found[name] = f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}"
    return found


def hybrid(folder: Path) -> None:
    """Run in four processes as if they were on two machines."""
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    me = ranks.join(1.0)
    found = {"updates": relay(folder, ("hybrid", "hybrid"), sharded=True), "sizes": sizes("hybrid")}
    (folder / f"{me.rank}.json").write_text(json.dumps(found))
    ranks.leave()


def main(folder: Path) -> None:
    """Run all cases in the processes of this job."""
    me = ranks.join(1.0)
    own = folder / str(me.rank)
    own.mkdir(parents=True)
    for number, name in enumerate(CASES):
        rows, weights = train(name, me.from_main(lambda: folder))
        (own / f"{number}.json").write_text(json.dumps(rows))
        save_file({key: value.contiguous() for key, value in weights.items()}, own / f"{number}.safetensors")
    shared = me.from_main(lambda: folder)
    (own / "relay.json").write_text(json.dumps(relay(shared / "relay")))
    (own / "in parts.json").write_text(json.dumps(relay(shared / "in parts", sharded=True)))
    saved_adapters(shared / "adapters")
    (own / "sizes.json").write_text(json.dumps({how: sizes(how) for how in ("none", "full")}))
    (own / "failures.json").write_text(json.dumps(failures()))
    ranks.leave()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    (hybrid if "hybrid" in sys.argv else main)(Path(sys.argv[1]))
