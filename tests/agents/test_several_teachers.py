"""Several teachers: one for each text, or one distribution of all."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import folder
from tiny import model, word_tokenizer

from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.envs import TextGenerationEnv
from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel
from rlgkd.lm.mixture import ModelMixture
from rlgkd.ops import divergence
from rlgkd.ops.teacher_mixture import mixed
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.train import start

WORDS = ("A", "B", "C", "D", "E")
ROWS = [
    {"prompt": "A B", "subject": "math"},
    {"prompt": "B A", "subject": "code"},
    {"prompt": "C A", "subject": None},
    {"prompt": "D A", "subject": "math"},
]
FEW: dict[str, Any] = {"prompts_per_update": 4, "group_size": 2}


def length(completions: list[str]) -> list[float]:
    return [float(len(text.split())) for text in completions]


def env(rows: Any = ROWS, **settings: Any) -> TextGenerationEnv:
    given = {"max_new_tokens": 5, "max_prompt_tokens": 8, "tokenizer": word_tokenizer(*WORDS)}
    return TextGenerationEnv(prompts=rows, reward=length, **{**given, **settings})


def lm(seed: int, kind: str = "llama") -> Any:
    return model(kind, vocabulary=len(WORDS) + 1, seed=seed)


@torch.no_grad()
def token_logp(module: Any, t: Any) -> list[float]:
    """The log-probability of each action, by plain transformers on one text alone."""
    logp_TV = module(input_ids=torch.tensor(t.tokens_T)[None]).logits[0].double().log_softmax(-1)
    return [float(logp_TV[place - 1, t.tokens_T[place]]) for place in np.flatnonzero(t.action_mask_T)]


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        (Distill, {}),
        (GRPO, {"epochs": 2, "gate": "rlsd", "alpha": 0.3}),
        (PPO, {"combination": "in_reward", "estimator": "sampled", "divergence": "reverse_kl"}),
        (Reinforce, {"student_fraction": 0.5, "off_policy": "teacher", "mixture": "prompt"}),
    ],
)
def test_with_both_names_on_one_model_it_is_the_run_of_one_teacher_to_the_bit(agent: Any, more: dict) -> None:
    one, two = lm(0), lm(0)
    teacher = lm(1)
    single = agent(one, env(), teacher=teacher, learning_rate=0.01, **FEW, **more)
    both = agent(
        two,
        env(),
        teacher={"math": teacher, "code": teacher, "default": teacher},
        teacher_column="subject",
        learning_rate=0.01,
        **FEW,
        **more,
    )
    assert len(both.teacher.distinct) == 1
    for learner in (single, both):
        learner.learn(80)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    shared = single.last_metrics.keys() - {
        "time/tokens_per_second",
        "time/sampling",
        "time/update",
        "time/gate",
        "time/reward",
    }
    assert {name: single.last_metrics[name] for name in shared} == {name: both.last_metrics[name] for name in shared}


def test_each_text_has_the_log_probabilities_of_its_own_teacher() -> None:
    math, code = lm(1), lm(2)
    agent = Distill(
        lm(0),
        env(),
        teacher={"math": math, "code": code, "default": math},
        teacher_column="subject",
        token_budget=30,
        prompts_per_update=8,
        group_size=2,
    )
    own = lm(0)
    agent.learn(1)
    found_BL = agent.rollout.log_probabilities(agent.teacher, 30)
    kls: dict[str, list[float]] = {}
    for row, t in enumerate(agent.trajectories):
        name = t.item.columns["subject"] or "default"
        teacher = code if name == "code" else math
        assert found_BL[row, : t.length].tolist() == pytest.approx(token_logp(teacher, t), abs=1e-6)
        with torch.no_grad():
            logits = [one(input_ids=torch.tensor(t.tokens_T)[None]).logits[0, :-1].double() for one in (teacher, own)]
        kl_T = divergence.reverse_kl(*logits)[torch.from_numpy(t.action_mask_T[1:])]
        kls.setdefault(name, []).append(float(kl_T.mean()))
    metrics = agent.last_metrics
    for name, values in kls.items():
        assert metrics[f"teacher/{name}/divergence"] == pytest.approx(np.mean(values), abs=1e-5)
        assert metrics[f"teacher/{name}/texts"] == len(values) / len(agent.trajectories)
        texts = [t.score.reward for t in agent.trajectories if (t.item.columns["subject"] or "default") == name]
        assert metrics[f"teacher/{name}/reward"] == pytest.approx(np.mean(texts))
    assert metrics["train/divergence"] == pytest.approx(np.mean([kl for own in kls.values() for kl in own]), abs=1e-5)


def test_an_evaluation_measures_each_prompt_by_its_own_teacher() -> None:
    math, code = lm(1), lm(2)
    agent = Distill(
        lm(0), env(), teacher={"math": math, "code": code, "default": math}, teacher_column="subject", **FEW
    )
    both = evaluate(agent.student, agent.teacher, agent.task, prompts=4)
    alone = {
        name: evaluate(agent.student, LanguageModel(module, agent.task.tokenizer), agent.task, prompts=4)
        for name, module in (("math", math), ("code", code))
    }
    assert [t.text for t in both.trajectories] == [t.text for t in alone["math"].trajectories]
    for row, t in enumerate(both.trajectories):
        name = "code" if t.item.columns["subject"] == "code" else "math"
        assert both.measures["reverse_kl"][row] == pytest.approx(alone[name].measures["reverse_kl"][row], abs=1e-6)
    written = evaluate(agent.teacher, agent.teacher, agent.task, prompts=4)
    assert written.measures["reverse_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("mix", "weights"), [("product", (0.7, 0.6)), ("product", (1.5, -0.5)), ("sum", (0.2, 0.6))])
def test_a_mixture_is_exact_over_the_vocabulary(mix: Any, weights: tuple[float, float]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, dtype=torch.float64)
    p, q = logits.softmax(-1).numpy()
    wanted = p ** weights[0] * q ** weights[1] if mix == "product" else weights[0] * p + weights[1] * q
    wanted = wanted / wanted.sum(-1, keepdims=True)
    assert mixed(list(logits), weights, mix).exp().numpy() == pytest.approx(wanted, rel=1e-12)


def test_a_product_has_the_divergence_of_the_mixture_in_a_whole_update() -> None:
    agent = Distill(
        lm(0),
        env(),
        teacher={"a": lm(1), "b": lm(2)},
        teacher_mix="product",
        teacher_weights={"a": 0.7, "b": 0.3},
        **FEW,
    )
    assert isinstance(agent.teacher, ModelMixture)
    own = lm(0)
    agent.learn(1)
    found_BL = agent.rollout.log_probabilities(agent.teacher, 1000)
    kls = []
    for row, t in enumerate(agent.trajectories):
        with torch.no_grad():
            mine, *others = (
                one(input_ids=torch.tensor(t.tokens_T)[None]).logits[0, :-1].double() for one in (own, lm(1), lm(2))
            )
        logp_TV = mixed(others, (0.7, 0.3), "product")
        places = np.flatnonzero(t.action_mask_T) - 1
        kls.append(float(divergence.reverse_kl(logp_TV, mine)[places].mean()))
        wanted = [float(logp_TV[place, t.tokens_T[place + 1]]) for place in places]
        assert found_BL[row, : t.length].tolist() == pytest.approx(wanted, abs=1e-5)
    assert agent.last_metrics["train/divergence"] == pytest.approx(np.mean(kls), abs=1e-5)


def test_a_mixture_of_one_model_twice_is_that_model() -> None:
    curves = []
    for teacher, more in ((lm(1), {}), ({"a": lm(1), "b": lm(1)}, {"teacher_mix": "sum"})):
        agent = GRPO(lm(0), env(), teacher=teacher, gate="r2_opd", alpha=0.5, **FEW, **more)
        agent.learn(60)
        curves.append(
            [agent.last_metrics[name] for name in ("train/divergence", "train/loss", "train/gate_divergence")]
        )
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_beyond_a_reference_model_the_gradient_is_that_of_exopd() -> None:
    """sum_v p_S(v) (log p_S - log p_ref - l (log p_T - log p_ref)) grad log p_S, whose sum over v of its mean is 0."""
    torch.manual_seed(0)
    student, teacher, reference = torch.randn(3, 5, dtype=torch.float64)
    beyond, student = 1.25, student.requires_grad_()
    divergence.reverse_kl(mixed([teacher, reference], (beyond, 1 - beyond), "product"), student).backward()
    logp, log_t, log_r = (one.log_softmax(-1) for one in (student.detach(), teacher, reference))
    cost_V = logp - log_r - beyond * (log_t - log_r)
    p = logp.exp()
    wanted = p * (cost_V - (p * cost_V).sum())
    assert student.grad.tolist() == pytest.approx(wanted.tolist(), abs=1e-12)


def test_an_extrapolation_of_1_is_the_teacher_itself(tmp_path) -> None:
    own = word_tokenizer(*WORDS)
    reference = folder(lm(2), own, tmp_path / "reference")
    agent = Distill(lm(0), env(), teacher=lm(1), reference_model=reference, extrapolation=1.0, **FEW)
    assert isinstance(agent.teacher, LanguageModel)
    beyond = Distill(lm(0), env(), teacher=lm(1), reference_model=reference, extrapolation=1.5, **FEW)
    assert beyond.teacher.weights == [1.5, -0.5]
    beyond.learn(1)
    assert beyond.last_metrics["train/divergence"] > 0
    of_self = Distill(lm(0), env(), teacher=lm(1), reference_model="self", **FEW)
    assert of_self.teacher.weights == [1.25, -0.25]


def test_what_does_not_work_is_refused_before_the_first_update() -> None:
    teachers = {"math": lm(1), "code": lm(2)}
    for rows, message in (
        (ROWS, "teacher_column: 'subject' does not work; 2 names none of the teachers math, code; .* default"),
        ([*ROWS[:2], {"prompt": "A", "subject": "maths"}], "2 names 'maths' of the teachers math, code; give one"),
    ):
        with pytest.raises(DataError, match=message):
            Distill(lm(0), env(rows), teacher=teachers, teacher_column="subject", **FEW)
    for settings, message in (
        ({"teacher": {}}, "give a mapping of names to models"),
        ({"teacher": {"a": "http://localhost:1"}}, "several teachers are models by names"),
        ({"teacher_decay": 0.5}, "no one model follows the student"),
        ({"behaviour": "teacher_mixed", "policy_loss": "clipped_weight"}, "it samples with one model"),
        ({"teacher_mix": "sum", "teacher_weights": {"math": 1.0}}, "give a weight for each of math, code"),
        ({"teacher_mix": "sum", "teacher_weights": {"math": 1.0, "code": -1.0}}, "shares of a sum are above 0"),
        ({"teacher_mix": "sum", "off_policy": "teacher", "student_fraction": 0.5}, "a mixture writes no texts"),
        ({"teacher_weights": {"math": 1.0, "code": 1.0}}, "set teacher_mix to product or sum"),
        ({"reference_model": "self"}, "it goes with one teacher"),
        ({"extrapolation": 2.0}, "set reference_model too"),
        ({"teacher": None, "alpha": 0.0, "teacher_weights": {"math": 1.0}}, "set teacher_mix to product or sum"),
        ({"teacher": None, "alpha": 0.0, "teacher_mix": "sum"}, "it is of several teachers"),
        ({"teacher": lm(1), "teacher_column": "subject"}, "it is of several teachers"),
        ({"teacher": lm(1), "teacher_mix": "sum"}, "it is of several teachers"),
    ):
        with pytest.raises(SettingError, match=message):
            Reinforce(lm(0), env(), **{"teacher": teachers, **FEW, **settings})
    with pytest.raises(ModelError, match="its head has 3 entries"):
        Distill(lm(0), env(), teacher={"a": lm(1), "b": model(vocabulary=3)}, teacher_mix="sum", **FEW)


def test_a_run_with_several_files_and_teachers_reports_each(tmp_path) -> None:
    own = word_tokenizer(*WORDS)
    names = {name: folder(lm(seed), own, tmp_path / name) for seed, name in enumerate(("student", "math", "code"))}
    for source, first in (("math", "A"), ("code", "B")):
        rows = [json.dumps({"prompt": f"{first} {letter}", "reference": "C"}) for letter in WORDS]
        (tmp_path / f"{source}.jsonl").write_text("\n".join(rows) + "\n")
    data = {source: str(tmp_path / f"{source}.jsonl") for source in ("math", "code")}
    settings = RunConfig(
        env="rlgkd/Dataset-v0",
        env_settings={
            "data": data,
            "shares": {"math": 3, "code": 1},
            "split_shares": None,
            "max_new_tokens": 4,
            "max_prompt_tokens": 8,
        },
        student=names["student"],
        teacher={"math": names["math"], "code": names["code"]},
        agent="GRPO",
        tokens=60,
        eval_prompts=4,
        **FEW,
    )
    start(settings, tmp_path / "run", quiet=True)
    header, *rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert {"teacher/math/reward", "teacher/code/divergence"} <= {*header.split(",")} and len(rows) > 1
    records = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert {(r["teacher"], r["prompt"][0]) for r in records} == {("math", "A"), ("code", "B")}
    assert sum(r["teacher"] == "math" for r in records) / len(records) == 0.75
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Divergence to math" in page and "Reward of the texts of code" in page
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["teacher_scores"] and summary["teacher"].startswith("math: ")
