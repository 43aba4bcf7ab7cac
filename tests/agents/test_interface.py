"""What Stable-Baselines3 promises of an algorithm: learn, callbacks, loggers, predict, evaluate_policy, save, load."""

from __future__ import annotations

import csv
import json
import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import rich
import tiny
import torch
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.envs.rewards.constant import no_reward
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.envs.vector_env import TextVectorEnv
from rlgkd.errors import CheckpointError, DataError, ModelError, RlgkdError, SettingError
from rlgkd.evaluation import evaluate
from rlgkd.ops.divergence import DIVERGENCES

STUDENT = "embedded:grounded-student"
TOKENIZER = tiny.word_tokenizer("A", "B", "C")
PROMPTS = ("A", "B C", "C A B")


def task(**settings) -> tiny.WordTask:
    settings = {"prompts": PROMPTS, "max_new_tokens": 4, **settings}
    return tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), **settings)


def environment(rows: int = 3, **settings) -> TextVecEnv:
    return TextVecEnv(task(**settings), num_envs=rows)


def model(seed: int = 0):
    return tiny.model(vocabulary=4, seed=seed, scale=0.1)


def agent(env=None, **settings) -> Reinforce:
    settings = {"alpha": 0.0, "prompts_per_update": 3, "group_size": 2, **settings}
    return Reinforce(model(), environment() if env is None else env, **settings)


def test_a_registered_id_is_enough(recwarn):
    learner = Reinforce(
        "embedded:grounded-student", "rlgkd/GroundedSummary-v0", alpha=0.0, prompts_per_update=1, group_size=2
    )
    learner.learn(1)
    assert learner.trajectories[0].text and not recwarn.list


def test_an_agent_says_what_it_is_and_measures_itself():
    learner = agent(teacher=model(1), alpha=0.25)
    assert repr(learner) == "Reinforce(a loaded model, teacher=a loaded model, words, alpha=0.25)"
    measured = learner.evaluate(prompts=3)
    theirs = evaluate(learner.student, learner.teacher, learner.task, prompts=3)
    assert [t.text for t in measured.trajectories] == [t.text for t in theirs.trajectories]
    mean = f"{measured.measures['reward'].mean():.4g}"
    assert repr(measured).startswith(f"Evaluation(3 texts: reward {mean}, ") and "reverse_kl" in repr(measured)


def test_episodes_are_counted_for_callbacks_of_sb3():
    learner = agent()
    learner.learn(10_000, callback=StopTrainingOnMaxEpisodes(4))  # of each of the 3 rows; 6 texts an update
    assert learner.state.updates == 2


@pytest.mark.parametrize(
    "make", [partial(SubprocVecEnv, start_method="fork"), partial(AsyncVectorEnv, context="fork", shared_memory=False)]
)
def test_environments_in_other_processes_are_refused_in_one_line(make):
    env = make([lambda: TextGenerationEnv(task())])
    try:
        with pytest.raises(
            SettingError, match=r"(Subproc|AsyncVector).*give a DummyVecEnv of one, or make_sb3_vec_env"
        ):
            agent(env)
    finally:
        env.close()


class Counting(BaseCallback):
    """Counts its calls; stops at one of them."""

    def __init__(self, stop_at: int = 10**9) -> None:
        super().__init__()
        self.stop_at, self.timesteps, self.events = stop_at, [], []

    def _on_training_start(self) -> None:
        self.events.append("start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout")

    def _on_rollout_end(self) -> None:
        self.events.append("end of rollout")

    def _on_training_end(self) -> None:
        self.events.append("end")

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        return self.n_calls < self.stop_at


def test_a_callback_is_called_each_lockstep_with_the_tokens_so_far():
    callback, learner = Counting(), agent()
    learner.learn(20, callback=callback)
    assert callback.timesteps[0] == 6 and callback.timesteps == sorted(set(callback.timesteps))
    assert callback.timesteps[-1] == learner.num_timesteps >= 20
    updates = learner.state.updates
    assert callback.events == ["start", *["rollout", "end of rollout"] * updates, "end"]


def test_a_callback_that_returns_false_stops_the_training_at_once():
    callback, learner = Counting(stop_at=2), agent()
    before = learner.student.head.weight.clone()
    learner.learn(10_000, callback=callback)
    assert callback.n_calls == 2 and callback.events[-1] == "end"
    assert torch.equal(learner.student.head.weight, before), "a cut rollout was trained on"


@pytest.mark.parametrize("source", [{}, {"student_fraction": 0.0, "off_policy": "teacher"}])
def test_texts_that_a_stop_cuts_off_are_not_scored(source):
    asked = []
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: asked.append(text) or 0.0), num_envs=2)
    learner = agent(env, teacher=model(1), alpha=1.0, **source)
    learner.learn(10_000, callback=Counting(stop_at=1))
    assert not asked and all(math.isnan(t.score.reward) for t in learner.trajectories)
    assert learner.state.rewards.count == 0 and not learner.ep_info_buffer
    learner.learn(1)
    assert len(asked) == len(learner.trajectories) and not any(math.isnan(t.score.reward) for t in learner.trajectories)


def test_sb3_callbacks_evaluate_and_save(tmp_path):
    evaluation = EvalCallback(
        environment(2), n_eval_episodes=3, eval_freq=4, best_model_save_path=str(tmp_path / "best"), verbose=0
    )
    checkpoint = CheckpointCallback(save_freq=4, save_path=str(tmp_path / "all"))
    agent().learn(60, callback=[evaluation, checkpoint])
    assert 0.0 <= evaluation.last_mean_reward <= 1.0
    folders = [*(tmp_path / "all").iterdir(), tmp_path / "best" / "best_model"]
    assert len(folders) > 1
    for folder in folders:
        assert Reinforce.load(folder, env=environment()).num_timesteps > 0


def test_every_logger_gets_a_row_for_each_update(tmp_path, capsys):
    learner = agent(teacher=model(1), alpha=0.2)
    learner.set_logger(configure(str(tmp_path), ["stdout", "csv", "tensorboard"]))
    learner.learn(60)
    learner.logger.close()
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    assert [row["time/iterations"] for row in rows] == [str(n + 1) for n in range(learner.state.updates)]
    names = {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "rollout/ended",
        "rollout/student",
        "rollout/reward/word",
        "time/total_timesteps",
        "train/loss",
        "train/divergence",
        "train/entropy",
        "train/grad_norm",
        "train/alpha",
        "train/learning_rate",
    }
    assert names <= rows[0].keys()
    assert all(row[name] for row in rows for name in names), "a row lacks what its own update measured"
    assert not any("second" in name for name in rows[0]), "a clock is no part of the curve"
    assert "ep_rew_mean" in capsys.readouterr().out
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.filterwarnings("ignore:rich is experimental")  # from the bar that SB3 uses, tqdm.rich
def test_the_progress_bar_counts_tokens(monkeypatch):
    import rlgkd.agents.sb3.progress_bar as base

    bars = []
    finish = base.TokenProgressBar._on_training_end
    monkeypatch.setattr(base.TokenProgressBar, "_on_training_end", lambda bar: bars.append(bar.pbar.n) or finish(bar))
    learner = agent().learn(30, progress_bar=True)
    assert bars == [learner.num_timesteps]


def test_the_progress_bar_of_a_notebook_is_a_line_of_text_that_needs_no_widgets(monkeypatch, capsys):
    monkeypatch.setattr(rich.get_console(), "is_jupyter", True)
    learner = agent().learn(30, progress_bar=True)
    assert f"{learner.num_timesteps}it [" in capsys.readouterr().err


def test_the_learning_rate_follows_its_schedule():
    rates = []
    learner = agent(learning_rate=lambda remaining: remaining)
    update = learner.train

    def train() -> None:
        update()
        rates.append(learner.policy.optimizer.param_groups[0]["lr"])

    learner.train = train
    learner.learn(60)
    assert rates == sorted(rates, reverse=True) and rates[0] < 1 and rates[-1] == 0


def test_evaluate_policy_measures_the_environments_reward():
    learner = agent()
    mean, deviation = evaluate_policy(learner, environment(2), n_eval_episodes=6, deterministic=True)
    texts = learner.generate(PROMPTS)
    assert mean == pytest.approx(np.mean([text.startswith("B") for text in texts]))
    assert deviation >= 0


def test_predict_takes_one_observation_or_many():
    learner, env = agent(), environment()
    observations = env.reset()
    many, state = learner.predict(observations, deterministic=True)
    assert state is None and many.shape == (3,)
    for observation, action in zip(observations, many, strict=True):
        one, _ = learner.predict(observation, deterministic=True)
        assert one == action and learner.action_space.contains(int(one))
        tokens = observation[observation >= 0]
        logits = learner.student.module(torch.from_numpy(tokens)[None]).logits[0, -1, :4]
        assert int(action) == int(logits.argmax())


def test_predict_samples_the_policys_distribution():
    learner = agent()
    observations = np.repeat(environment(1).reset(), 3000, 0)
    actions, _ = learner.predict(observations)
    logits = learner.student.module(torch.tensor([[1]])).logits[0, -1, :4]
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / 3000, logits.softmax(-1).detach(), atol=0.03)


def test_the_memo_is_dropped_when_the_weights_change():
    learner, env = agent(learning_rate=0.5), environment()
    learner.predict(env.reset())
    learner.learn(6)
    assert learner.policy.reader.cached is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: TextGenerationEnv(task()),
        lambda: TextVectorEnv(task(), num_envs=2),
        lambda: TextVecEnv(task(), num_envs=2),
    ],
)
def test_every_kind_of_environment_trains_alike(make):
    learner = agent(make()).learn(40)
    same = agent().learn(40)
    assert torch.equal(learner.student.head.weight, same.student.head.weight)


def test_wrappers_that_the_agent_would_not_see_are_refused():
    class Doubled(gym.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    for env in (Doubled(TextGenerationEnv(task())), VecNormalize(environment(), norm_obs=False)):
        with pytest.raises(SettingError, match="reward"):
            agent(env)


def test_generate_completes_prompts_of_ones_own():
    learner = agent()
    assert learner.generate(["A", "C C"]) == learner.generate(["A", "C C"])
    assert len(learner.generate(["A"] * 3, greedy=False, seed=1)) == 3


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}], ids=str)
def test_filters_are_for_what_an_agent_writes_and_not_for_its_training(filters):
    learner, prompts = agent(), ["A", "C C"] * 4
    assert learner.generate(prompts, greedy=False, **filters) == learner.generate(prompts)
    assert learner.generate(prompts, greedy=False) != learner.generate(prompts)
    with pytest.raises(SettingError, match="greedy: True does not work"):
        learner.generate(prompts, **filters)
    with pytest.raises(SettingError, match=r"does not work; Reinforce has no such setting"):
        agent(**filters)


def test_generate_takes_another_temperature_and_limit_and_training_keeps_its_own():
    learner, prompts = agent(), ["A", "C C"] * 4
    usual, temperature = learner.generate(prompts), learner.student.temperature
    assert learner.generate(prompts, greedy=False, temperature=1e-4) == usual
    assert all(usual[n].startswith(text) for n, text in enumerate(learner.generate(prompts, max_new_tokens=1)))
    assert learner.generate(prompts, max_new_tokens=1) != usual
    assert learner.student.temperature == temperature and learner.generate(prompts) == usual
    for wrong in ({"temperature": 2.0}, {"greedy": False, "temperature": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(SettingError):
            learner.generate(prompts, **wrong)


@pytest.fixture
def divergences():
    """Those that there are, and after the test no others."""
    before = dict(DIVERGENCES)
    yield
    DIVERGENCES.clear()
    DIVERGENCES.update(before)


@pytest.mark.usefixtures("divergences")
def test_a_function_of_ones_own_in_a_saved_agent_must_be_given_again(tmp_path):
    """A folder of a model is data: what it names is never imported."""

    def half_square(teacher_logits, student_logits):
        return (teacher_logits.softmax(-1) - student_logits.softmax(-1)).square().sum(-1) / 2

    learner = agent(teacher=model(1), alpha=0.5, divergence=half_square).learn(20)
    learner.save(tmp_path)
    with pytest.raises(SettingError, match=r"divergence: .* it is a function of your own; pass divergence="):
        Reinforce.load(tmp_path, env=environment(), teacher=model(1))
    again = Reinforce.load(tmp_path, env=environment(), teacher=model(1), divergence=half_square)
    assert again.objective == learner.objective


def test_a_saved_agent_is_a_hugging_face_folder_without_a_pickle(tmp_path):
    learner = agent().learn(20)
    learner.save(tmp_path / "agent.zip")
    folder = tmp_path / "agent"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}
    opened = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in learner.student.module.state_dict().items():
        assert torch.equal(value, opened.state_dict()[name])
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == TOKENIZER.get_vocab()


def test_a_loaded_agent_goes_on_from_where_it_was_saved(tmp_path):
    learner = agent(temperature=1.3, learning_rate=1e-3).learn(20)
    learner.save(tmp_path)
    again = Reinforce.load(tmp_path, env=environment())
    assert again.state == learner.state
    assert (again.student.temperature, again.config.sampling.group_size, again.objective) == (1.3, 2, learner.objective)
    assert again.generate(PROMPTS) == learner.generate(PROMPTS)
    again.learn(20, reset_num_timesteps=False)
    assert again.num_timesteps > learner.num_timesteps
    assert again.state.next_prompt == learner.state.next_prompt + 3 * (again.state.updates - learner.state.updates)


def test_what_was_given_as_an_object_must_be_given_again(tmp_path):
    learner = agent(teacher=model(1), alpha=0.5, learning_rate=lambda remaining: 1e-3)
    learner.save(tmp_path)
    with pytest.raises(SettingError, match="teacher"):
        Reinforce.load(tmp_path, env=environment())
    with pytest.raises(SettingError, match="learning_rate"):
        Reinforce.load(tmp_path, env=environment(), teacher=model(1))
    again = Reinforce.load(tmp_path, env=environment(), teacher=model(1), learning_rate=1e-4)
    assert again.objective.alpha == 0.5


def test_a_folder_that_is_no_agent_is_refused(tmp_path):
    agent().save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=r"use Reinforce\.load"):
        Distill.load(tmp_path / "agent", env=environment())
    with pytest.raises(CheckpointError, match="save"):
        Reinforce.load(tmp_path / "nothing", env=environment())
    with pytest.raises(SettingError, match="env"):
        Reinforce.load(tmp_path / "agent")
    settings = tmp_path / "agent" / "rlgkd_agent.json"
    state = json.loads(settings.read_text())["state"]
    for wrong in ({}, {"agent": "Reinforce", "settings": []}, {"agent": 5, "settings": {"alpha": 0.0}}):
        settings.write_text(json.dumps({"settings": {}, "state": state, **wrong}))
        with pytest.raises(CheckpointError, match=r"give a folder that save\(\) wrote"):
            Reinforce.load(tmp_path / "agent", env=environment())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"alpha": 0.5}, "teacher"),
        ({"alpha": 2.0}, "alpha"),
        ({"group_size": 1}, "group_size"),
        ({"prompts_per_update": 0}, "prompts_per_update"),
        ({"token_budget": 0}, "token_budget"),
        ({"precision": "float16"}, "precision"),
        ({"temperature": 0.0}, "temperature"),
        ({"device": "cuda:7"}, "device"),
    ],
)
def test_a_setting_that_does_not_work_is_refused_by_its_name(settings, field):
    with pytest.raises(SettingError) as error:
        agent(**settings)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("kind", "setting", "nearest"),
    [
        (Reinforce, "alhpa", "alpha"),
        (Distill, "learningrate", "learning_rate"),
        (PPO, "gae_lamda", "gae_lambda"),
        (PPO, "horizn", "horizon"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_nearest(kind, setting, nearest):
    with pytest.raises(SettingError, match=f"^{setting}: 1 does not work; {kind.__name__} has .* mean '{nearest}'"):
        kind(model(), environment(), **{setting: 1})


def test_distillation_refuses_an_alpha_of_its_own():
    with pytest.raises(SettingError, match="alpha"):
        Distill(model(), environment(), teacher=model(1), alpha=0.2)
    assert Distill(model(), environment(), teacher=model(1)).objective.alpha == 1.0


def test_partners_that_do_not_fit_are_refused():
    other = tiny.word_tokenizer("B", "A", "C")
    with pytest.raises(ModelError, match="environment's"):
        agent(tokenizer=other)
    ended = tiny.word_tokenizer("A", "B", "C")
    ended.eos_token = "C"
    with pytest.raises(ModelError, match="ends with"):
        agent(tokenizer=ended)
    with pytest.raises(ModelError, match="context of 64"):
        agent(environment(max_new_tokens=62))


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda env: Reinforce(STUDENT, env, alpha=0.0, seed=-1), "seed"),
        (lambda env: Reinforce(STUDENT, env, alpha=0.0, seed="x"), "seed"),
        (lambda env: Reinforce(STUDENT, env, alpha=0.0, tokenizer=3), "tokenizer"),
        (lambda env: Reinforce(STUDENT, None, alpha=0.0), "env"),
        (lambda env: Reinforce(STUDENT, 3, alpha=0.0), "env"),
        (lambda env: Reinforce(STUDENT, "no/Such-v0", alpha=0.0), "env"),
        (lambda env: Reinforce(STUDENT, env, alpha=0.0, learning_rate=lambda remaining: 1 / 0), "learning_rate"),
        (lambda env: Reinforce(STUDENT, env, alpha=0.0, learning_rate=lambda remaining: "x"), "learning_rate"),
        (lambda env: Reinforce(STUDENT, env, alpha=0.0, learning_rate=lambda remaining: math.nan), "learning_rate"),
    ],
)
def test_arguments_of_an_agent_that_do_not_work_are_named(build, field):
    env = TextGenerationEnv(prompts=[" a"], reward=no_reward, tokenizer=STUDENT, max_new_tokens=4, max_prompt_tokens=8)
    with pytest.raises(RlgkdError, match=f"^{field}: "):
        build(env)


def test_what_an_agent_is_asked_for_is_checked():
    env = TextGenerationEnv(prompts=[" a"], reward=no_reward, tokenizer=STUDENT, max_new_tokens=4, max_prompt_tokens=8)
    agent = Reinforce(STUDENT, env, alpha=0.0, prompts_per_update=1, group_size=2)
    assert agent.generate([]) == []
    for prompts in (" a", [3]):  # a text is no list of its characters
        with pytest.raises(DataError, match="give a list of texts"):
            agent.generate(prompts)
    for tokens in (-5, math.nan, "x"):
        with pytest.raises(SettingError, match="total_timesteps"):
            agent.learn(tokens)
    with pytest.raises(SettingError, match="prompts"):
        agent.evaluate(prompts="x")
