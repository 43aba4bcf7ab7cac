"""Rewards that wait are asked for aside: events in their order, the same training to the bit, no thread left."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rlgkd.agents import GRPO, PPO, Reinforce
from rlgkd.background import BackgroundTask
from rlgkd.envs import TextTask, rewards
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import RewardError
from rlgkd.types import Score

TOKENIZER = tiny.word_tokenizer("A", "B")
READ = threading.Event()
"""Set whenever a teacher reads."""
PATIENCE = 20
"""Seconds, of what happens at once unless something is broken."""


def learner(reward, kind=Reinforce, *, task=TextTask, max_failed_rewards=1.0, **settings):
    settings = {
        "alpha": 0.4,
        "prompts_per_update": 6,
        "group_size": 3,
        "token_budget": 24,
        "learning_rate": 1e-2,
        **settings,
    }
    READ.clear()
    described = task(
        prompts=["A", "B", "A B"],
        reward=reward,
        tokenizer=TOKENIZER,
        max_new_tokens=5,
        max_prompt_tokens=2,
        max_failed_rewards=max_failed_rewards,
    )
    student, teacher = (tiny.model(vocabulary=3, seed=seed, scale=0.3) for seed in (0, 5))
    agent = kind(student, TextVecEnv(described), teacher=teacher, **settings)
    states = agent.teacher.states
    agent.teacher.states = lambda batch: (READ.set(), states(batch))[1]
    return agent


def outcome(agent) -> tuple[dict[str, object], list[torch.Tensor], list[str]]:
    rows = {name: repr(value) for name, value in agent.last_metrics.items() if not name.startswith("time/")}
    scores = [repr((t.text, t.score, t.score.failure)) for t in agent.trajectories]
    return rows, list(agent.student.module.parameters()), scores


def counted(completions, tokens):
    """What each token earns, where no text has three A; the others fail alone."""
    return [
        ValueError("three") if text.count("A") == 3 else [float(word == "A") for word in row]
        for text, row in zip(completions, tokens, strict=True)
    ]


async def counted_aside(completions, tokens):
    READ.clear()
    for _ in range(100):  # where nobody reads, the reward of the first of two parts is waited for
        await asyncio.sleep(0.001)
        if READ.is_set():
            break
    return counted(completions, tokens)


@pytest.fixture
def no_thread_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_a_server_is_asked_while_the_teacher_reads(no_thread_left):
    answered = []

    class Slow(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["completions"]
            answered.append(READ.wait(PATIENCE))  # an answer that only comes when the teacher has read
            body = json.dumps({"rewards": [float(text.count("A")) for text in texts]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        agent = learner(rewards.served(f"http://127.0.0.1:{server.server_port}", batch_size=64, timeout=2 * PATIENCE))
        agent.learn(1)
        server.shutdown()
        thread.join()
    assert answered == [True]
    assert [t.score.reward for t in agent.trajectories] == [float(t.text.count("A")) for t in agent.trajectories]


def test_the_next_texts_are_written_while_the_reward_of_the_first_waits(no_thread_left):
    writing, told = threading.Event(), []

    async def reward(completions):
        if not told:
            told.append(await asyncio.to_thread(writing.wait, PATIENCE))
        return [0.0] * len(completions)

    agent = learner(reward, prompts_per_update=16, student_fraction=0.5, mixture="prompt", off_policy="teacher")
    given = agent.sources.off_policy
    agent.sources.off_policy = lambda *arguments: writing.set() or given(*arguments)
    agent.learn(1)
    assert told == [True]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Reinforce, {}),
        (Reinforce, {"student_fraction": 0.5, "mixture": "prompt", "off_policy": "teacher", "alpha": 0.1}),
        (Reinforce, {"combination": "in_reward", "estimator": "sampled", "horizon": 0.0}),
        (GRPO, {"epochs": 2, "teacher_decay": 0.9}),
        (PPO, {"epochs": 2, "precision": "bfloat16"}),
        (Reinforce, {"alpha": 0.0, "normalise_rewards": True}),
    ],
    ids=["plain", "mixed", "in_reward", "a teacher that moves", "bfloat16", "no divergence"],
)
def test_training_is_the_same_to_the_bit(kind, settings, no_thread_left):
    agents = [learner(reward, kind, **settings) for reward in (counted, counted_aside)]
    for agent in agents:
        agent.learn(300)
    (rows, weights, scores), (rows_aside, weights_aside, scores_aside) = map(outcome, agents)
    assert rows == rows_aside and scores == scores_aside
    assert any("three" in score for score in scores) or kind is PPO
    assert all(torch.equal(one, other) for one, other in zip(weights, weights_aside, strict=True))
    graders = [agent.task.grader for agent in agents]
    assert (graders[0].scored, graders[0].failed) == (graders[1].scored, graders[1].failed) and graders[1].failed > 0


def test_the_teacher_has_read_ahead_and_no_text_twice():
    async def when_it_has(completions):
        await asyncio.to_thread(READ.wait, PATIENCE)
        return [0.0] * len(completions)

    agent = learner(when_it_has, token_budget=12, gradient_norms_every=0)
    passes = []
    states = agent.teacher.states
    agent.teacher.states = lambda batch: passes.append(batch) or states(batch)
    ahead = []
    step = agent.gradient_step

    def counted(rollout, credit):
        ahead.append(sum(part.teacher_states_NH is not None for part in rollout.micro_batches))
        return step(rollout, credit)

    agent.gradient_step = counted
    agent.learn(1)
    assert ahead[0] > 0 and all(part.teacher_states_NH is None for part in agent.rollout.micro_batches)
    assert sum(len(batch.tokens_BT) for batch in passes) == len(agent.trajectories)


def test_a_reward_that_computes_stays_in_the_main_thread_and_a_task_that_scores_in_its_own_way_is_asked_so():
    threads = []

    def reward(completions):
        threads.append(threading.current_thread())
        return [0.0] * len(completions)

    async def never(completions):
        raise AssertionError("the task scores by itself")

    class Own(TextTask):
        def score(self, items, completions, **more):
            threads.append(threading.current_thread())
            return [Score(reward=2.0) for _ in items]

    learner(reward).learn(1)
    agent = learner(never, task=Own)
    agent.learn(1)
    assert threads == [threading.main_thread()] * 2 and agent.trajectories[0].score.reward == 2.0


def test_too_many_failures_stop_the_run_and_a_timeout_is_one(no_thread_left, caplog):
    async def stuck(completions):
        await asyncio.sleep(PATIENCE)

    agent = learner(stuck, prompts_per_update=20, max_failed_rewards=0.5)
    agent.task.grader.timeout = 0.01
    with caplog.at_level(logging.ERROR), pytest.raises(RewardError, match=r"60 of 60 .* first failure: TimeoutError"):
        agent.learn(1)


def test_whatever_breaks_the_rollout_off_calls_the_reward_off(no_thread_left):
    began, ended = threading.Event(), []

    async def endless(completions):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    def interrupted(batch):
        assert began.wait(PATIENCE)  # a reward that has not begun has nothing to end
        raise KeyboardInterrupt

    agent = learner(endless)
    agent.teacher.states = interrupted
    with pytest.raises(KeyboardInterrupt):
        agent.learn(1)
    assert ended == [True]


def test_callbacks_see_the_scores(no_thread_left):
    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append([t.score.reward for t in self.model.trajectories])

    async def one(completions):
        await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    seen = []
    learner(one).learn(1, callback=Watch())
    assert seen == [[1.0] * 18]


def test_an_agent_with_a_reward_that_waits_can_be_copied():
    assert copy.deepcopy(learner(counted_aside).task).max_new_tokens == 5


def test_aside_begins_at_once_and_ends_with_its_result(no_thread_left):
    began = threading.Event()

    numbers = []

    async def told():
        began.set()
        numbers.append(2)

    aside = BackgroundTask(told(), lambda: numbers[0] + 1)
    assert began.wait(PATIENCE) and aside.result() == 3 and aside.done()


def test_aside_is_called_off_before_or_after_its_end(no_thread_left):
    async def told(event):
        await event.wait()

    BackgroundTask(told(asyncio.Event()), str).cancel()

    async def nothing():
        return None

    aside = BackgroundTask(nothing(), str)
    while not aside.done():
        pass
    aside.cancel()
