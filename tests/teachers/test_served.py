"""A teacher on a server: what it says equals what the model in this process says, and what fails is never a number."""

from __future__ import annotations

import gc
import logging
import math
import random
import socket
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import tiny
import torch
from on_request import minutes
from stable_baselines3.common.logger import Logger
from teacher_server import FAULTS, TeacherServer, serving

from rlgkd import failures
from rlgkd.agents import GRPO, PPO, Distill, Reinforce, algorithm
from rlgkd.errors import ModelError, SettingError, TeacherError
from rlgkd.lm import LanguageModel, load, load_tokenizer
from rlgkd.ops import divergence
from rlgkd.rollout import sample_episodes
from rlgkd.teachers import collate
from rlgkd.teachers.opening import Chat, open_served
from rlgkd.teachers.served import ServedTeacher
from rlgkd.teachers.vllm import known_text
from rlgkd.types import Batch, Episode

STUDENT, TEACHER, ENV = "embedded:grounded-student", "embedded:grounded-teacher", "rlgkd/GroundedSummary-v0"
V = 940


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return LanguageModel(load(TEACHER), load_tokenizer(TEACHER))


@pytest.fixture
def server(teacher: LanguageModel) -> Iterator[TeacherServer]:
    with serving(teacher.module, teacher.tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def texts() -> list[Episode]:
    agent = agent_of(TEACHER)
    items = [agent.task.item("train", 0, index) for index in range(2)]
    return sample_episodes(agent.student, agent.task, items, group=2, seed=0)


def agent_of(teacher: str, kind: type = Reinforce, **settings: object):
    settings = {"prompts_per_update": 2, "group_size": 2, "learning_rate": 1e-3, "alpha": 0.5, **settings}
    agent = kind(STUDENT, ENV, teacher=teacher, device="cpu", seed=0, **settings)
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


def opened(url: str, teacher: LanguageModel, **settings: object) -> ServedTeacher:
    given = {"top_k": 8, "longest": 200, "timeout": 20.0, "retries": 0, "concurrency": 8, "max_failed": 0.5, **settings}
    return open_served(url, teacher.tokenizer, **given)


def apart(one, other) -> float:
    """How far two trainings have parted, as a share of the way that the first has gone.

    AdamW's first steps are the gradients' signs, and rounding decides that of a gradient near 0, so the largest
    difference of any weight says nothing.
    """

    def weights(agent) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in agent.student.module.parameters()])

    start = torch.cat([parameter.flatten() for parameter in load(STUDENT).parameters()]).detach()
    return ((weights(one) - weights(other)).norm() / (weights(one) - start).norm()).item()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Reinforce, {"teacher_top_k": V, "prompts_per_update": 1}),
        (GRPO, {"teacher_top_k": 16, "divergence": "jsd(0.9)", "horizon": 0.5, "policy_loss": "clipped", "epochs": 2}),
        (
            Distill,
            {
                "teacher_top_k": V,
                "prompts_per_update": 1,
                "divergence": "forward_kl",
                "student_fraction": 0.0,
                "alpha": 1.0,
            },
        ),
        (Reinforce, {"estimator": "sampled"}),
        (Reinforce, {"estimator": "asymmetric", "teacher_top_k": V, "prompts_per_update": 1}),
        (PPO, {"estimator": "sampled", "combination": "in_reward"}),
    ],
)
def test_training_is_that_with_the_teacher_in_the_process(server, kind, settings) -> None:
    agents = [agent_of(name, kind, **settings) for name in (TEACHER, server.url)]
    for agent in agents:
        agent.learn(1)
    assert apart(*agents) < 2e-3
    ours, theirs = (agent.rows.rows[-1]["train/divergence"] for agent in agents)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert agents[1].rows.rows[-1]["train/teacher_failed"] == 0
    assert "train/teacher_failed" not in agents[0].rows.rows[-1]


def test_a_divergence_at_k_equal_to_v_is_the_whole_and_below_it_is_no_more(server, teacher, texts) -> None:
    student = LanguageModel(load(STUDENT), load_tokenizer(STUDENT))
    lengths = [text.length for text in texts]
    batch = Batch.collate(texts, pad=student.pad)
    student_NV, teacher_NV = student.logits(student.states(batch)), teacher.logits(teacher.states(batch))
    for k in (1, 64, V):
        served = opened(server.url, teacher, top_k=k)
        known = collate([answer.result() for answer in served.submit(texts)], lengths, "cpu")
        served.resolve()
        for name in ("forward_kl", "reverse_kl", "total_variation", "jeffreys"):
            function = divergence.get(name)
            whole_N = function(teacher_NV, student_NV).detach()
            coarse_N = function(*known.with_bucket(student_NV)).detach()
            assert (coarse_N <= whole_N + 1e-4).all()
            assert k < V or torch.allclose(coarse_N, whole_N, atol=1e-4)


def test_an_evaluation_has_the_divergence_over_the_known_tokens(server) -> None:
    scores = [agent_of(name, teacher_top_k=V).evaluate(prompts=1).measures for name in (TEACHER, server.url)]
    for name in ("reverse_kl", "reverse_kl_data"):
        np.testing.assert_allclose(scores[0][name], scores[1][name], atol=1e-4)
    less = agent_of(server.url, teacher_top_k=4).evaluate(prompts=1).measures
    assert (less["reverse_kl"] <= scores[0]["reverse_kl"] + 1e-4).all()
    assert "reverse_kl" not in agent_of(server.url, estimator="sampled").evaluate(prompts=1).measures


def test_a_prompt_at_which_the_teacher_fails_has_no_divergence_in_an_evaluation(server) -> None:
    agent = agent_of(server.url, teacher_top_k=4, teacher_retries=0)
    whole = agent.evaluate(prompts=3).measures
    server.do_wrong("nan")
    measures = agent.evaluate(prompts=3).measures
    assert np.isnan([*measures["reverse_kl"], *measures["reverse_kl_data"]]).sum() == 1
    for name in ("reverse_kl", "reverse_kl_data"):
        known = np.isfinite(measures[name])
        np.testing.assert_allclose(measures[name][known], whole[name][known], atol=1e-5)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_failure_and_never_a_number(server, teacher, texts, fault) -> None:
    served = opened(server.url, teacher, timeout=2.0 if fault == "late" else 20.0, concurrency=1)
    right = [answer.result() for answer in served.submit(texts[:3])]
    served.resolve()
    server.do_wrong(None, fault)
    answers = served.submit(texts[:3])
    assert [answer.exception() is None for answer in answers] == [True, False, True]
    served.resolve()
    for row in (0, 2):
        for name in ("logp_LK", "ids_LK", "rest_L", "token_logp_L"):
            np.testing.assert_array_equal(getattr(answers[row].result(), name), getattr(right[row], name))


def test_a_failed_text_has_a_policy_term_and_no_part_in_the_divergence(server, monkeypatch) -> None:
    """The gradient is that of the same rollout with the failed text left out of the divergence's mean."""
    agents = [agent_of(name, estimator="sampled", reduction="sequence_mean") for name in (TEACHER, server.url)]
    agents[1].teacher.server = agents[1].teacher.server.__class__(
        **{**vars(agents[1].teacher.server), "retries": 0, "concurrency": 1}
    )
    server.do_wrong(None, None, "status")
    agents[1].learn(1)
    assert agents[1].rows.rows[-1]["train/teacher_failed"] == 0.25

    plain = algorithm.accumulate_gradient

    def leaving_out(*given, **named):
        return plain(*given, **{**named, "left_out_B": torch.tensor([False, False, True, False])})

    monkeypatch.setattr(algorithm, "accumulate_gradient", leaving_out)
    agents[0].learn(1)
    assert apart(*agents) < 2e-3
    ours, theirs = (agent.rows.rows[-1]["train/divergence"] for agent in agents)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_an_update_without_any_answer_has_the_policy_term_alone_and_no_divergence(server) -> None:
    agent = agent_of(server.url, teacher_top_k=4, teacher_retries=0, divergence_target=0.3)
    server.do_wrong(*["garbage"] * 5)
    agent.learn(1)
    row = agent.rows.rows[-1]
    assert row["train/teacher_failed"] == 1 and np.isnan(row["train/divergence"])
    assert np.isfinite(row["train/loss"]) and agent.state.alpha is None
    agent.learn(1)
    assert np.isfinite(agent.rows.rows[-1]["train/divergence"])


def test_in_the_reward_a_failed_text_has_no_policy_term_either(server) -> None:
    agent = agent_of(server.url, estimator="sampled", combination="in_reward", teacher_retries=0, teacher_requests=1)
    server.do_wrong(None, "nan")
    credits = []
    plain = agent.credit
    agent.credit = lambda rollout: credits.append(plain(rollout)) or credits[-1]
    agent.learn(1)
    assert credits[0].valid_B.tolist() == [True, False, True, True]
    assert credits[0].advantages_BL[1].abs().sum() == 0


def test_too_many_failures_stop_the_run_with_the_address(server, teacher, texts) -> None:
    served = opened(server.url, teacher, max_failed=0.5)
    server.do_wrong(*["status"] * 1000)
    with pytest.raises(TeacherError, match=rf"{served.name}: \d+ of \d+ texts failed.*500"):
        for _ in range(40):
            served.submit(texts)
            served.resolve()
    server.do_wrong()
    patient = opened(server.url, teacher, max_failed=1.0)
    server.do_wrong(*["status"] * 1000)
    for _ in range(20):
        patient.submit(texts)
        patient.resolve()


def test_a_server_that_was_away_for_one_batch_stops_nothing(server, teacher, texts, monkeypatch) -> None:
    monkeypatch.setattr(failures, "MIN_SAMPLES", 12)
    served = opened(server.url, teacher, max_failed=0.1)
    for batch in range(6):
        server.do_wrong(*["refused"] * (5 if batch == 3 else 0))
        served.submit(texts)
        served.resolve()
    server.do_wrong(*["refused"] * 5)
    served.submit(texts)
    with pytest.raises(TeacherError, match="8 of 28 texts failed"):
        served.resolve()


def test_a_server_that_restarts_is_asked_again(teacher, texts) -> None:
    with serving(teacher.module, teacher.tokenizer) as server:
        served = opened(server.url, teacher, retries=4)
        port = server.server_port
    answers = served.submit(texts[:2])
    with serving(teacher.module, teacher.tokenizer, port=port):
        assert all(answer.exception() is None for answer in answers)
        served.resolve()


def test_another_model_after_a_restart_is_noticed(teacher, texts) -> None:
    with serving(teacher.module, teacher.tokenizer) as server:
        served = opened(server.url, teacher, retries=4)
        port = server.server_port
    with serving(load(STUDENT), teacher.tokenizer, port=port):
        served.submit(texts[:2])
        with pytest.raises(ModelError, match=r"another model than it was: .* moved by"):
            served.resolve()


def test_a_teacher_with_more_tokens_is_renormalised_over_those_of_the_student(teacher, texts) -> None:
    """As in the process: P(v) / P(V_S), here with all of its tokens known."""
    module = tiny.model(vocabulary=V + 20)
    with serving(module, teacher.tokenizer, extra=20) as server:
        served = opened(server.url, teacher, top_k=V + 20, longest=64)
        served.top_k = V + 20
        short = [text for text in texts if len(text.tokens_T) <= tiny.CONTEXT]
        text = short[0] if short else texts[0]
        (answer,) = served.submit([text])
        known = answer.result()
        served.resolve()
    logits_TV = module(input_ids=torch.from_numpy(text.tokens_T)[None]).logits[0, :, :V]
    logp_LV = logits_TV.log_softmax(-1)[np.flatnonzero(text.action_mask_T) - 1].detach().numpy()
    np.testing.assert_allclose(np.take_along_axis(logp_LV, known.ids_LK[:, :V], 1), known.logp_LK[:, :V], atol=1e-4)
    assert np.isneginf(known.logp_LK[:, V:]).all()


def test_where_the_likeliest_tokens_are_not_the_students_the_written_one_is_known() -> None:
    """By hand: 0.6 of another's token, 0.1 of the written one, so 0.25 of it among those of the student."""
    there = {"7": {"logprob": math.log(0.6)}, "2": {"logprob": math.log(0.1)}}
    answer = {"model": "m", "choices": [{"prompt_logprobs": [None, there]}]}
    known = known_text(answer, [1, 2], [1], model="m", k=1, vocabulary=4)
    teacher, student = collate([known], [1], "cpu").with_bucket(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log())
    assert [round(p, 4) for p in teacher.exp()[0].tolist()] == [0.25, 0.75]
    assert [round(p, 4) for p in student.exp()[0].tolist()] == [0.2, 0.8]


def test_opening_refuses_what_is_no_teacher_for_this_student(server, teacher, monkeypatch) -> None:
    def refused(match: str, url: str = "", error: type = ModelError, **settings: object) -> None:
        with pytest.raises(error, match=match):
            opened(url or server.url, teacher, **settings)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused("is it running there", f"http://127.0.0.1:{free.getsockname()[1]}")
    refused("give an address", "http://", error=SettingError)
    refused("no model 'other'; choose one of teacher", f"{server.url}#other")
    refused("context of 256 tokens is shorter than the 301 that are needed", longest=300)
    refused("at most 1024: 64 are usual", top_k=2000, error=SettingError)
    server.max_logprobs = 5
    refused("--max-logprobs 8, or lower teacher_top_k")
    server.max_logprobs = 1024
    monkeypatch.setattr(server, "tokenizer", load_tokenizer("embedded:translate-teacher"))
    refused(r"its vocabulary differs from the student's: token \d+ is '.*' there and '.*' here")
    monkeypatch.setattr(server, "tokenizer", teacher.tokenizer)
    server.do_wrong("nan")
    refused("as a log-probability; give a vLLM server")
    assert opened(f"{server.url}/v1/#teacher", teacher).model == "teacher"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"teacher_temperature": 0.5}, "teacher_temperature: 0.5 .* temperature 1; set it to 1"),
        ({}, "teacher_top_k: None .* set it, to 64 say"),
        ({"teacher_top_k": 4, "teacher_decay": 0.9}, "teacher_decay"),
        ({"teacher_top_k": 4, "teacher_device": "cpu"}, "teacher_device"),
        ({"teacher_top_k": 4, "teacher_dtype": "bfloat16"}, "teacher_dtype"),
        ({"teacher_top_k": 4, "off_policy": "teacher", "student_fraction": 0.5}, "off_policy: 'teacher'"),
        ({"teacher_top_k": 4, "behaviour": "teacher_mixed", "policy_loss": "clipped_weight"}, "behaviour"),
        ({"estimator": "fixed_negative", "gate": "improbable"}, "estimator: 'fixed_negative' .* leave the teacher out"),
        ({"estimator": "sampled_centred"}, "estimator: 'sampled_centred' .* use sampled"),
        ({"teacher_top_k": 4, "gate": "gap"}, "gate"),
    ],
)
def test_settings_that_need_a_model_are_refused_before_anything_is_opened(settings, match) -> None:
    with pytest.raises(SettingError, match=match):
        agent_of("http://127.0.0.1:9", **settings)


@pytest.mark.parametrize(("variable", "user"), [("VLLM_API_KEY", ""), ("USER_AND_KEY", "$USER_AND_KEY@")])
def test_ids_are_sent_and_the_key_of_the_server_is_not_shown(
    server, teacher, texts, monkeypatch, caplog, variable, user
) -> None:
    monkeypatch.setenv(variable, "a:secret")
    served = opened(server.url.replace("//", f"//{user}"), teacher, max_failed=1.0)
    server.do_wrong(*["status"] * 10)
    with caplog.at_level(logging.WARNING):
        served.submit(texts[:1])
        served.resolve()
    assert server.asked[-2]["prompt"] in (texts[0].tokens_T.tolist(), list(served.fixed_text))
    assert server.headers[-1]["Authorization"] == ("Basic YTpzZWNyZXQ=" if user else "Bearer a:secret")
    assert "secret" not in caplog.text and "the teacher failed for a text" in caplog.text
    assert "secret" not in served.name


def test_requests_run_while_rewards_are_computed(server) -> None:
    """The reward waits, for 10 seconds, until the teacher has been asked for all texts."""
    agent = agent_of(server.url, teacher_top_k=4)
    asked_before = len(server.asked)
    plain, seen = agent.task.score, []

    def score(*given, **named):
        for _ in range(200):
            if len(server.asked) >= asked_before + 4:
                break
            threading.Event().wait(0.05)
        seen.append(len(server.asked) - asked_before)
        return plain(*given, **named)

    agent.task.score = score
    agent.learn(1)
    assert seen[0] >= 4


def test_an_error_while_answers_are_pending_ends_the_requests(server) -> None:
    agent = agent_of(server.url, teacher_top_k=4)
    threads = threading.active_count()
    server.do_wrong(*["late"] * 10)

    def broken(*given, **named):
        raise RuntimeError("a reward that raises")

    agent.task.score = broken
    with pytest.raises(RuntimeError, match="a reward that raises"):
        agent.learn(1)
    server.over.set()
    assert threading.active_count() <= threads + 5  # the server's own threads, which wait
    assert not [thread for thread in threading.enumerate() if "_run_all" in thread.name]
    assert agent.teacher._pending == []


@pytest.mark.parametrize(
    ("ids", "said"), [([5, 6, 7], ""), ([5, 9], "chat template is another one"), (None, "has no chat template")]
)
def test_another_chat_template_is_reported(server, teacher, caplog, ids, said) -> None:
    server.chat_ids = ids
    chat = Chat(messages=[{"role": "user", "content": "Hello"}], variables={"thinking": False}, ids=[5, 6, 7])
    opened(server.url, teacher, chat=chat)
    assert (said in caplog.text) if said else not caplog.text


def test_a_callback_that_stops_leaves_nothing_pending(server) -> None:
    agent = agent_of(server.url, teacher_top_k=4, mixture="prompt", student_fraction=0.5)
    steps = iter([True] * 4)
    agent.learn(10_000, callback=lambda *_: next(steps, False))
    assert agent.rollout.stopped and agent.rollout.answers is None and agent.teacher._pending == []


def test_a_failure_while_the_gradient_is_computed_gives_the_gradient_without_that_text(server, monkeypatch) -> None:
    """The value head's loss of the pass that does not count is in no metric either."""
    agents = [
        agent_of(server.url, PPO, teacher_top_k=4, teacher_retries=0, teacher_requests=1, gradient_norms_every=0)
        for _ in range(2)
    ]
    passes: list[list[bool]] = []
    plain = algorithm.accumulate_gradient

    def counting(*given, **named):
        passes.append(named["left_out_B"].tolist())
        server.release.set()
        return plain(*given, **named)

    monkeypatch.setattr(algorithm, "accumulate_gradient", counting)
    server.do_wrong(None, None, "held")
    agents[0].learn(1)
    late, at_once = passes.copy(), agents[1]
    assert sum(late[0]) == 0 and sum(late[-1]) == 1
    server.do_wrong(None, None, "held")
    collect = at_once.collect_rollouts

    def waiting(*given):
        going = collect(*given)
        at_once.rollout.failed_B(wait=True)
        return going

    at_once.collect_rollouts = waiting
    passes.clear()
    at_once.learn(1)
    assert passes == late[1:] and len(late) == 2
    assert apart(*agents) < 1e-5
    for name in ("train/value_loss", "train/divergence", "train/loss"):
        assert agents[0].rows.rows[-1][name] == pytest.approx(at_once.rows.rows[-1][name], abs=1e-6)


def random_faults(server, served, texts, rounds: int) -> None:
    """Rounds of eight texts, most of which fail in a way that chance picks; what is right is right to the bit."""
    rng = random.Random(0)
    kinds = [fault for fault in FAULTS if fault != "late"]
    right = [answer.result() for answer in served.submit(texts)]
    served.resolve()
    injected = failed = 0
    for _ in range(rounds):
        faults = [rng.choice([*kinds, None]) for _ in range(len(texts) + 1)]
        injected += sum(fault is not None for fault in faults)
        server.do_wrong(*faults)
        answers = served.submit(texts)
        served.resolve()
        for answer, known in zip(answers, right, strict=True):
            if answer.exception() is not None:
                failed += 1
                continue
            np.testing.assert_array_equal(answer.result().logp_LK, known.logp_LK)
            np.testing.assert_array_equal(answer.result().token_logp_L, known.token_logp_L)
    assert injected - rounds <= failed <= injected  # a fault may hit the fixed text, which is then not compared


def left_open() -> tuple[int, int]:
    gc.collect()
    return len(psutil.Process().net_connections(kind="tcp")), threading.active_count()


@pytest.mark.parametrize("rounds", [6, pytest.param(130, marks=minutes)])
def test_injected_faults_leave_no_number_no_socket_and_no_thread(teacher, texts, rounds) -> None:
    """130 rounds are 1,000 faults and more."""
    before = left_open()
    with serving(teacher.module, teacher.tokenizer) as server:
        random_faults(server, opened(server.url, teacher, max_failed=1.0, top_k=2), texts * 2, rounds)
    assert left_open() <= before
