"""A sampler on a server: its texts are the student's, what fails is counted, and no text of other weights is used."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
import torch
from sampler_server import SAMPLE_FAULTS, SamplerServer, sampling
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.agents.mismatch import corrected
from rlgkd.agents.sampler_settings import SamplerSettings
from rlgkd.agents.state import TrainingState
from rlgkd.envs import TextGenerationEnv
from rlgkd.errors import ModelError, SamplerError, SettingError
from rlgkd.lm import LanguageModel, load, load_tokenizer
from rlgkd.lm.stop_strings import StopStrings
from rlgkd.samplers import PendingTexts, ServedSampler
from rlgkd.samplers.opening import open_sampler
from rlgkd.samplers.untied import save_untied

EMBEDDED = {
    "policy": "embedded:grounded-student",
    "teacher": "embedded:grounded-teacher",
    "env": "rlgkd/GroundedSummary-v0",
}
STALE = {"staleness": 1, "policy_loss": "clipped", "max_mismatch": 5.0}
WORDS = ("A", "B", "C", "D", "E", "F")
TOKENIZER = tiny.word_tokenizer(*WORDS)


@pytest.fixture
def server() -> Iterator[SamplerServer]:
    with sampling(tiny.model(vocabulary=7), TOKENIZER) as running:
        yield running


def agent_of(kind: type = Reinforce, **settings: object):
    prompts = [{"prompt": prompt, "reference": "E"} for prompt in ("A B", "B", "C D A", "D")]
    env = TextGenerationEnv(
        prompts=prompts,
        reward=lambda completion: float("E" in completion),
        tokenizer=TOKENIZER,
        max_prompt_tokens=8,
        max_new_tokens=6,
    )
    settings = {
        "policy": tiny.model(vocabulary=7),
        "env": env,
        "teacher": tiny.model(vocabulary=7, seed=1),
        "prompts_per_update": 4,
        "group_size": 2,
        "learning_rate": 1e-2,
        "alpha": 0.5,
        "gradient_norms_every": 0,
        **({"sampler_retries": 0} if settings.get("sampler") else {}),
        **settings,
    }
    agent = kind(settings.pop("policy"), settings.pop("env"), device="cpu", seed=0, **settings)
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


def opened(server: SamplerServer, lm: LanguageModel) -> ServedSampler:
    settings = {"longest": 20, "group": 2, "timeout": 10.0, "retries": 0, "concurrency": 4, "max_failed": 0.5}
    return open_sampler([server.url], lm, **settings)


def weights_of(agent) -> list[torch.Tensor]:
    return [p.detach().clone() for p in agent.student.module.parameters()]


def same_weights(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def of(agent, name: str) -> list[float]:
    return [row[name] for row in agent.rows.rows]


@pytest.mark.parametrize("by", ["path", "gloo"])
def test_texts_are_sampled_with_the_weights_of_each_update(by) -> None:
    """The importance weights are 1 to 1e-3 in float32, so the server follows every step of the optimizer."""
    student = LanguageModel(load(EMBEDDED["policy"]), load_tokenizer(EMBEDDED["policy"]))
    with sampling(student.module, student.tokenizer) as server:
        settings = {"temperature": 1.3, "prompts_per_update": 2, "learning_rate": 1e-3}
        agent = agent_of(GRPO, sampler=server.url, sampler_weights=by, **settings, **EMBEDDED)
        before = weights_of(agent)
        agent.learn(150)
    assert len(agent.rows.rows) > 2 and server.pushes == 2 + len(agent.rows.rows)
    assert not same_weights(before, weights_of(agent))
    assert max(of(agent, "train/mismatch_p99")) < 1e-4 and max(of(agent, "train/mismatch_cut")) == 0
    assert set(of(agent, "train/sampler_failed")) == {0.0} and min(of(agent, "train/entropy")) > 0
    np.testing.assert_allclose(agent.rollout.importance_BL, 1.0, atol=1e-3)


def test_each_prompt_has_its_own_stream_of_random_numbers(server) -> None:
    agents = [agent_of(sampler=server.url) for _ in range(2)]
    for agent in agents:
        agent.learn(50)
    texts = [[t.tokens_T.tolist() for t in agent.trajectories] for agent in agents]
    assert texts[0] == texts[1] and same_weights(*map(weights_of, agents))
    asked = [one for one in server.sampled if one["n"] == 2]
    assert len({one["seed"] for one in asked}) == len(asked) // 2 >= 8 and all(
        0 <= one["seed"] < 2**62 for one in asked
    )
    assert all(one["top_p"] == 1 and one["top_k"] == -1 and one["ignore_eos"] for one in asked)


def test_two_servers_share_the_prompts(server) -> None:
    with sampling(tiny.model(vocabulary=7), TOKENIZER, name="other") as second:
        agent = agent_of(sampler=[server.url, f"{second.url}/v1#other"], sampler_weights="gloo")
        agent.learn(1)
        assert [sum(one["n"] == 2 for one in each.sampled) for each in (server, second)] == [2, 2]
        assert of(agent, "train/mismatch")[0] < 1e-4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PPO, {"epochs": 2}),
        (Reinforce, {"estimator": "sampled", "horizon": 0.5}),
        (PPO, {"estimator": "sampled", "combination": "in_reward"}),
        (Distill, {"alpha": 1.0, "student_fraction": 0.5, "mixture": "prompt"}),
        (GRPO, {"gate": "improbable", "estimator": "sampled"}),
        (GRPO, {"lora_rank": 2, "importance": "mask"}),
    ],
)
def test_every_method_takes_served_texts(server, kind, settings) -> None:
    agent = agent_of(kind, sampler=server.url, **settings)
    agent.learn(30)
    assert max(of(agent, "train/mismatch")) < 1e-4 and np.isfinite(of(agent, "train/loss")).all()


def test_a_wrong_answer_is_never_a_text(server) -> None:
    lm = LanguageModel(tiny.model(vocabulary=7), TOKENIZER)
    sampler, task = opened(server, lm), tiny.WordTask(TOKENIZER, len, prompts=["A", "B"], max_new_tokens=6)
    items = [task.item("train", 0, index) for index in range(2)]
    messages = set()
    for fault in SAMPLE_FAULTS:
        server.sample_wrong(fault)
        sampler._first_failure = None
        texts = PendingTexts(sampler, lm, task, items, group=2, seed=3, stream_indices=[0, 1]).finish(lambda n: True)
        assert texts.failed == 2 and len(texts.episodes) == 2 and len(set(texts.indices)) == 1, fault
        assert server.url in str(sampler._first_failure)
        messages.add(re.sub(r"\d+", "", str(sampler._first_failure)))
        sampler._count.__init__()
    assert len(messages) >= len(SAMPLE_FAULTS) - 4  # they say what was wrong


def test_a_failure_costs_its_prompt_and_is_counted(server) -> None:
    agent = agent_of(sampler=server.url, max_failed_sampler=1.0)
    server.sample_wrong(None, None, None, "nan")  # the first three are of the fixed text
    agent.learn(1)
    assert of(agent, "train/sampler_failed") == [0.25]
    assert len(agent.trajectories) == 6 and np.isfinite(of(agent, "train/loss")).all()
    patient = agent_of(sampler=server.url, sampler_retries=1)
    server.sample_wrong(None, None, None, "busy")
    patient.learn(1)
    assert of(patient, "train/sampler_failed") == [0.0]


def test_too_many_failures_stop_with_the_address_and_the_weights_as_they_were(server) -> None:
    agent = agent_of(sampler=server.url)
    before = weights_of(agent)
    server.sample_wrong(None, None, None, *["status"] * 4)
    with pytest.raises(SamplerError, match=f"sampler: '{server.url}: all 8 texts of an update failed'.*answered 500"):
        agent.learn(1)
    assert same_weights(before, weights_of(agent)) and agent.state.next_prompt == 0
    agent.learn(1)  # the server is back
    assert len(agent.trajectories) == 8


def test_neither_threads_nor_sockets_are_left(server) -> None:
    def open_now() -> tuple[int, int]:
        gc.collect()
        connections = psutil.Process().net_connections()
        return threading.active_count(), len([c for c in connections if c.status == "ESTABLISHED"])

    agent = agent_of(GRPO, sampler=server.url, max_failed_sampler=1.0, **STALE)
    agent.learn(1)
    before = open_now()
    server.sample_wrong(*[None, "refused", "garbage", "status", None] * 2)
    agent.learn(60)
    after = open_now()
    assert after[0] <= before[0] + 1 and after[1] <= before[1] + 2  # the server's own last ones are closing


def test_a_head_that_stays_as_it_was_is_caught(server) -> None:
    """As vLLM on a CPU leaves that of tied embeddings; where first weights are equal, nothing else would show it."""
    server.keeps = ("lm_head.weight",)
    with pytest.raises(SamplerError, match=r"does not follow all weights.*rlgkd\.samplers\.untied"):
        agent_of(sampler=server.url).learn(1)
    assert all(one["n"] == 1 for one in server.sampled)  # no text was asked for


@pytest.mark.parametrize("kept", ["layers.0.mlp.up_proj.weight", "norm.weight", "layers.1.self_attn.q_proj.weight"])
def test_one_weight_that_does_not_come_is_caught(server, kept) -> None:
    server.keeps = (kept,)
    with pytest.raises(SamplerError, match="does not follow all weights"):
        agent_of(sampler=server.url).learn(1)


def test_weights_that_stop_coming_in_the_middle_are_caught(server) -> None:
    agent = agent_of(sampler=server.url)
    agent.learn(1)
    server.take = lambda weights: None
    with pytest.raises(SamplerError, match=f"{server.url}.*samples with other weights than the student's"):
        agent.learn(1, reset_num_timesteps=False)


@pytest.mark.parametrize("by", ["path", "gloo"])
def test_a_server_that_does_not_take_weights_stops_the_run(server, by) -> None:
    agent = agent_of(sampler=server.url, sampler_weights=by, sampler_timeout=5.0)
    agent.learn(1)

    def fail(weights: object) -> None:
        raise MemoryError("none left")

    server.take = fail
    with pytest.raises(ModelError, match=f"{server.url}.*did not take the weights.*none left.*--resume"):
        agent.learn(1, reset_num_timesteps=False)


def test_a_server_of_another_model_is_refused(server) -> None:
    server.take = lambda weights: None
    with pytest.raises(SamplerError, match="before any training"):
        agent_of(sampler=server.url, policy=tiny.model(vocabulary=7, seed=5)).learn(1)
    server.asleep = True
    with pytest.raises(SettingError, match="it sleeps, and training does not share its GPU"):
        agent_of(sampler=server.url)
    server.asleep, server.max_model_len = False, 8
    with pytest.raises(ModelError, match="context of 8 tokens is shorter"):
        agent_of(sampler=server.url)


def test_raw_log_probabilities_are_refused(server) -> None:
    """Those of `--logprobs-mode raw_logprobs` are not tempered."""
    texts = server.texts
    server.texts = lambda asked: texts({**asked, "temperature": 1.0})
    with pytest.raises(SamplerError, match="processed_logprobs"):
        agent_of(sampler=server.url, temperature=1.5).learn(1)


def test_sixteen_bits_are_not_taken_for_a_stale_head_nor_hide_one() -> None:
    student = LanguageModel(load(EMBEDDED["policy"]), load_tokenizer(EMBEDDED["policy"]))
    student.module.lm_head.weight = torch.nn.Parameter(student.module.lm_head.weight.clone())
    with sampling(student.module, student.tokenizer, dtype=torch.bfloat16) as server:
        agent = agent_of(sampler=server.url, **EMBEDDED)
        agent.learn(1)
        assert 1e-3 < of(agent, "train/mismatch")[0] < 0.1
        assert agent.served_texts.weights.tolerance == pytest.approx(0.15)
        agent.config = agent.Config(**{**agent.config.flat(), "max_mismatch": 1e-4})
        before = weights_of(agent)
        with pytest.raises(SamplerError, match=rf"max_mismatch: 0\.0001 .*{server.url}.*nats a token in the mean"):
            agent.learn(1)
        assert same_weights(before, weights_of(agent))
        server.keeps = ("lm_head.weight",)
        with pytest.raises(SamplerError, match="does not follow all weights"):
            agent_of(sampler=server.url, **EMBEDDED).learn(1)


def test_weights_are_ratios_up_to_the_cap_or_none_beyond_it(server) -> None:
    """By hand: what the texts were sampled with is moved, so that each ratio is known."""
    agent = agent_of(sampler=server.url)
    agent.learn(1)
    exact_BL = agent.rollout.log_probabilities(agent.student, 4096)
    mu_BL = exact_BL.clone()
    long = max(range(8), key=lambda row: agent.trajectories[row].length)
    mu_BL[long, :3] -= torch.tensor([math.log(1.5), math.log(3.0), -math.log(4.0)], dtype=torch.float64)
    moved = dataclasses.replace(agent.rollout, importance_BL=None).with_log_probabilities(mu_BL, agent.student)
    tokens = sum(t.length for t in moved.trajectories)
    for importance, expected in (("truncate", [1.5, 2.0, 0.25]), ("mask", [1.5, 0.0, 0.0]), ("none", None)):
        settings = SamplerSettings(sampler=[server.url], importance=importance, max_mismatch=1.0)
        found, metrics = corrected(moved, agent.student, None, settings, token_budget=4096)
        assert metrics["train/mismatch"] == pytest.approx(math.log(1.5 * 3 * 4) / tokens, rel=1e-3)
        text = found.trajectories[long]
        logp = text.logp_T[text.action_mask_T]
        if expected is None:
            assert found.importance_BL is None and "train/mismatch_cut" not in metrics
            np.testing.assert_allclose(logp, mu_BL[long, : text.length], atol=1e-6)
        else:
            np.testing.assert_allclose(found.importance_BL[long, :3], expected, atol=1e-3)
            assert metrics["train/mismatch_cut"] == pytest.approx((1 if importance == "truncate" else 2) / tokens)
            np.testing.assert_allclose(logp, exact_BL[long, : text.length], atol=1e-5)


def test_the_weights_stand_before_the_policy_term_and_not_before_the_exact_divergence(server) -> None:
    agent = agent_of(sampler=server.url)
    agent.learn(1)
    rollout, credit = agent.rollout, agent.credit(agent.rollout)

    def gradient(alpha: float, weight: float | None, **settings: object) -> torch.Tensor:
        weights_BL = None if weight is None else torch.full_like(rollout.importance_BL, weight)
        objective = agent.config.objective.model_copy(update={"alpha": alpha, **settings})
        agent._accumulate(objective, agent.teacher, dataclasses.replace(rollout, importance_BL=weights_BL), credit)
        grads = torch.cat([p.grad.reshape(-1) for p in agent.student.module.parameters()])
        agent.student.module.zero_grad()
        return grads

    assert torch.equal(gradient(0.5, None), gradient(0.5, 1.0))  # the neutral weight changes no bit
    torch.testing.assert_close(gradient(0.0, 2.0), 2 * gradient(0.0, None))
    assert torch.equal(gradient(1.0, 2.0), gradient(1.0, None))
    for estimator in ("sampled", "k2", "k3"):
        sampled = gradient(1.0, None, estimator=estimator)
        torch.testing.assert_close(gradient(1.0, 2.0, estimator=estimator), 2 * sampled)


def test_several_turns_and_stop_strings(server) -> None:
    """Each turn is asked for by the tokens so far, with a seed of its own; a stop string ends it as it does here."""

    class Dialogue(tiny.WordTask):
        def reply(self, item, turns):
            return "D" if len(turns) < 5 else None

        def encode_reply(self, text, *, closed=True):
            return list(self.tokenizer(text)["input_ids"])

    lm = LanguageModel(tiny.model(vocabulary=7), TOKENIZER)
    task = Dialogue(TOKENIZER, len, prompts=["A", "B"], max_new_tokens=16)
    task.stops = StopStrings(TOKENIZER, ["C"])
    sampler, items = opened(server, lm), [task.item("train", 0, index) for index in range(2)]

    def texts() -> list[list[int]]:
        steps: list[int] = []
        pending = PendingTexts(sampler, lm, task, items, group=2, seed=3, stream_indices=[0, 1])
        found = pending.finish(lambda tokens: bool(steps.append(tokens)) or True).episodes
        assert sum(steps) == sum(episode.length for episode in found)
        assert max(len(episode.turns) for episode in found) > 2
        for episode in found:
            assert all("C" not in turn[:-1] for turn in episode.turns[::2])
        return [episode.tokens_T.tolist() for episode in found]

    assert texts() == texts()
    seeds = [asked["seed"] for asked in server.sampled[: len(server.sampled) // 2]]
    assert len(set(seeds)) == len(seeds) > 2
    server.sample_wrong(None, None, "status")  # a second turn
    found = PendingTexts(sampler, lm, task, items, group=2, seed=3, stream_indices=[0, 1]).finish(lambda n: True)
    assert (len(found.episodes), found.failed) == (2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "nowhere"}, "sampler: 'nowhere' .*give the address of a vLLM server"),
        ({"sampler": "URL", "sampler_weights": "gloo", "sampler_folder": "x"}, "sampler_folder: 'x' .*through no file"),
        ({"sampler": "URL", "behaviour": "interleaved", "policy_loss": "clipped_weight"}, "sampler: .*sample together"),
        ({"sampler": "URL", "staleness": 1}, "staleness: 1 .*another policy's; set policy_loss to clipped"),
        ({"sampler": "URL", "staleness": 2}, "staleness: 2"),
        ({"staleness": 1, "policy_loss": "clipped"}, "staleness: 1 .*take turns anyway"),
        ({"importance": "mask"}, "importance: 'mask' .*set sampler too"),
        ({"sampler": "URL", "importance": "none", "importance_cap": 3.0}, "importance_cap: 3.0 .*no weights to cap"),
        ({"sampler": "URL", "student_fraction": 0.5, **STALE}, "student_fraction to 1"),
        ({"sampler": "URL,URL/v1"}, "give each server once"),
    ],
)
def test_what_does_not_go_together_is_refused(server, settings, message) -> None:
    settings = {
        name: value.replace("URL", server.url) if isinstance(value, str) else value for name, value in settings.items()
    }
    with pytest.raises(SettingError, match=message):
        agent_of(**settings)


def test_without_a_sampler_its_settings_change_no_bit() -> None:
    plain, same = agent_of(), agent_of(sampler=[], sampler_weights="path", importance="truncate", staleness=0)
    for agent in (plain, same):
        agent.learn(80)
    assert same_weights(*map(weights_of, (plain, same)))
    assert "train/mismatch_p99" not in plain.rows.rows[-1] and "waiting" not in plain.state.to_json()


def test_an_encoder_decoder_is_refused(server) -> None:
    with pytest.raises(SettingError, match="vLLM has no encoder-decoder models"):
        agent_of(policy=tiny.model("t5", vocabulary=7), teacher=None, alpha=0.0, sampler=server.url)


def test_an_untied_folder_is_the_same_model_with_a_head_of_its_own(tmp_path: Path) -> None:
    module = tiny.model("qwen2", vocabulary=7)
    save_untied(module, TOKENIZER, tmp_path)
    opened_again = load(str(tmp_path))
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    assert opened_again.lm_head.weight.data_ptr() != opened_again.get_input_embeddings().weight.data_ptr()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(opened_again(ids).logits, module(ids).logits)


def test_with_staleness_texts_are_of_the_weights_before_the_last_step(server) -> None:
    agent = agent_of(GRPO, sampler=server.url, **STALE)
    agent.learn(80)
    mismatch = of(agent, "train/mismatch")
    assert mismatch[0] < 1e-4 and min(mismatch[1:]) > 10 * mismatch[0]  # one step has moved the policy
    assert len(mismatch) > 2 and server.pushes == 2 + len(mismatch) and agent.state.waiting is None


class Kept(BaseCallback):
    """Saves at the beginning of the third update, as a run does."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_rollout_start(self) -> None:
        agent = self.model
        if agent.state.updates == 2:
            state = json.loads(json.dumps(agent.state.to_json()))
            checkpoint.save(self.folder, model=agent.modules, optimizer=agent.policy.optimizer, state=state)

    def _on_step(self) -> bool:
        return True


def test_with_staleness_a_run_goes_on_to_the_bit(server, tmp_path: Path) -> None:
    whole, again = (agent_of(GRPO, sampler=server.url, **STALE) for _ in range(2))
    whole.learn(110, callback=Kept(tmp_path / "step-2"))
    state = checkpoint.load(tmp_path / "step-2", model=again.modules, optimizer=again.policy.optimizer)
    again.state = TrainingState.from_json(state)
    assert again.state.waiting is not None and len(again.state.waiting.texts) == 8
    again.learn(110 - again.num_timesteps, reset_num_timesteps=False)
    assert again.state.updates == whole.state.updates > 3 and same_weights(*map(weights_of, (whole, again)))
    assert of(whole, "train/loss")[2:] == of(again, "train/loss")
    for damage in ({"update": -1}, {"texts": [{}]}, {"failed": "1"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            TrainingState.from_json({**state, "waiting": {**state["waiting"], **damage}})


def test_with_staleness_a_failure_between_two_updates_stops_and_leaves_nothing(server) -> None:
    agent = agent_of(GRPO, sampler=server.url, **STALE)
    server.sample_wrong(*[None] * 7, *["status"] * 8)
    with pytest.raises((SamplerError, ModelError), match=server.url):
        agent.learn(200)
    assert agent.served_texts._ahead is None
