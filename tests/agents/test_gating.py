"""Gates in the agents: what a neutral one leaves alone, what is logged, what is refused by name, and plug-ins."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import tiny
import torch
from rank_cases import UPDATES, WORDS, Texts, learner, talk
from stable_baselines3.common.logger import Logger

from rlgkd.agents import GRPO, PPO, RLOO, Distill, Reinforce
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.gating import extra_work
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import SettingError
from rlgkd.ops import gate


def trained(agent: TextAlgorithm) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The logged rows of some updates, and the weights after them."""
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(10**6, callback=Texts())
    assert len(rows.rows) == UPDATES
    return rows.rows, {name: value.clone() for name, value in agent.modules.state_dict().items()}


NEUTRAL = [
    (GRPO, {"alpha": 0.0, "epochs": 2}, {"gate": "rlsd", "reweighting": 0.0}),
    (PPO, {"alpha": 0.3}, {"gate": "rlsd", "reweighting": 0.0}),
    (Distill, {"estimator": "sampled"}, {"gate": "iw_opd", "prefix_gain": 0.0}),
    (Reinforce, {"student_fraction": 0.5, "mixture": "prompt"}, {"gate": "iw_opd", "prefix_gain": 0.0}),
]


@pytest.mark.parametrize(("kind", "settings", "neutral"), NEUTRAL)
def test_a_neutral_gate_trains_to_the_same_bits(
    kind: type[TextAlgorithm], settings: dict[str, Any], neutral: dict[str, Any]
) -> None:
    """RLSD at l = 0 is GRPO, IW-OPD at g = 0 plain on-policy distillation (the papers' own identities)."""
    alpha = {} if kind is Distill else {"alpha": settings.get("alpha", 0.5)}
    settings = {key: value for key, value in settings.items() if key != "alpha"}
    weights = []
    for more in ({}, neutral):
        student, teacher = (tiny.model(vocabulary=len(WORDS) + 1, seed=seed) for seed in (0, 5))
        common = {"learning_rate": 1e-3, "prompts_per_update": 4, "token_budget": 96}
        agent = kind(student, TextVecEnv(talk()), teacher=teacher, **common, **alpha, **settings, **more)
        weights.append(trained(agent)[1])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_gate_by_outcome_logs_how_many_texts_are_right_and_says_so_if_none_ever_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rows_of(verified_from: float) -> list[dict[str, Any]]:
        agent = learner(Reinforce, gate="ra_opd", verified_from=verified_from)
        rows = trained(agent)[0]
        while agent.state.updates < 5:
            agent.learn(1, reset_num_timesteps=False)
        return rows

    with caplog.at_level(logging.WARNING, "rlgkd.agents.watch"):
        shares = [row["train/gate_right"] for row in rows_of(0.5)]
        assert all(0 < share < 1 for share in shares) and not caplog.records
        assert [row["train/gate_right"] for row in rows_of(1e6)] == [0.0] * 5
    (said,) = [record.message for record in caplog.records]
    assert "no text of 5 updates counted as right" in said and "set verified_from" in said
    assert "train/gate_right" not in trained(learner(Reinforce, gate="iw_opd"))[0][0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gates_settings_are_finite(value: float) -> None:
    with pytest.raises(SettingError, match=r"verified_from: .*give a finite number"):
        gate.get("ra_opd", verified_from=value)
    with pytest.raises(SettingError, match="agree_weight: "):
        gate.get("sg_opd", agree_weight=value)


@pytest.mark.parametrize("kind", [GRPO, PPO, RLOO, Reinforce])
def test_the_mean_weights_are_logged_and_the_gate_changes_what_is_learnt(kind: type[TextAlgorithm]) -> None:
    rows, weights = trained(learner(kind, gate="iw_opd"))
    assert all(1.0 < row["train/gate_divergence"] < 1.5 and "train/gate_policy" not in row for row in rows)
    assert all(row["time/gate"] > 0 for row in rows)
    if kind is not Reinforce:
        return
    plain, others = trained(learner(kind))
    assert not plain[0].keys() & {"train/gate_divergence", "train/gate_policy", "time/gate"}
    assert any(not torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "rlds"}, "gate: 'rlds' does not work; did you mean 'rlsd'?"),
        ({"gate": "rlsd", "prefix_gain": 0.1}, "prefix_gain: 0.1 does not work; it belongs to iw_opd"),
        ({"gate": "rlsd", "reweighting": 1.5}, r"reweighting: 1.5 does not work; give a number in \[0, 1\]"),
        ({"gate": "tip", "kept_tokens": 0}, r"kept_tokens: 0.0 does not work; give a number in \(0, 1\]"),
        ({"gate": "aopd", "alpha": 1}, "it reads the advantage, which alpha 1 has none of"),
        ({"estimator": "fixed_negative"}, "without a gate its expected gradient is 0; set gate to improbable"),
        ({"estimator": "fixed_negative", "gate": "improbable", "horizon": 0.5}, "no divergence of later tokens"),
        ({"estimator": "fixed_negative", "gate": "improbable", "divergence_target": 0.5}, "no divergence that alpha"),
        ({"estimator": "asymmetric", "epochs": 2, "alpha": 1}, "after the first step the texts are another policy's"),
        ({"gap": "power"}, "it transforms the sampled log-ratio: set estimator to sampled or sampled_centred"),
        ({"gap": "clip", "estimator": "sampled", "horizon": 0.5}, "set horizon to 0, or gap to log"),
        ({"gap": "clip(0)", "estimator": "sampled"}, "gap_bound: 0.0 does not work"),
        ({"gate": "iw_opd", "prefix_gain": -1}, "prefix_gain: -1.0 does not work; give 0 or more"),
        ({"gate": "rlsd", "alpha": 1}, "it weighs the policy term, which alpha 1 has none of"),
        ({"gate": "rlsd", "alpha": 1, "alpha_end": 0}, "it reads the advantage, which alpha 1 has none of"),
        ({"gate": "iw_opd", "alpha": 0}, "it weighs the divergence, which alpha 0 leaves out"),
        ({"gate": "iw_opd", "student_fraction": 0, "alpha": 1}, "it weighs the student's own texts"),
        ({"teacher_probes": 2}, "no gate asks for answers of the teacher: set gate to tgopd"),
        ({"gate": "tgopd", "teacher_decay": 0.9}, "gate: 'tgopd' does not work; each prompt is answered once"),
        ({"gate": "tgopd", "reference_model": "self"}, "a mixture writes no texts; choose another gate"),
        ({"gate": "rlsd", "combination": "in_reward", "estimator": "sampled"}, "the divergence is in the reward"),
        ({"gate": "rlsd", "behaviour": "teacher_mixed", "policy_loss": "clipped_weight"}, "sampled alone"),
    ],
)
def test_what_a_gate_cannot_do_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learner(**settings)


def test_what_a_gate_costs_is_said() -> None:
    assert extra_work("none") == extra_work("aopd") == ""
    assert extra_work("rlsd") == "applies the teacher's head once more and holds its states"
    assert extra_work("tip").startswith("runs the student over its texts once more")
    assert extra_work("tgopd") == "has the teacher answer each new prompt"


def test_a_gate_that_reads_the_teacher_needs_one_even_at_alpha_0() -> None:
    student = tiny.model(vocabulary=len(WORDS) + 1)
    with pytest.raises(SettingError, match=r"the gate rlsd reads it: set teacher=\.\.\., or gate=none"):
        GRPO(student, TextVecEnv(talk()), alpha=0.0, gate="rlsd")


def test_a_gate_of_another_package_is_found_and_a_broken_one_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "GATES", dict(gate.GATES))
    found = [
        EntryPoint("iw_again", "rlgkd.ops.gate:iw_opd", gate.GROUP),
        EntryPoint("rlsd", "rlgkd.ops.gate:none", gate.GROUP),
        EntryPoint("broken", "rlgkd.ops.gate:nothing_there", gate.GROUP),
    ]
    with caplog.at_level(logging.WARNING):
        gate.add_plugins(found)
    assert gate.GATES["iw_again"] is gate.iw_opd and gate.GATES["rlsd"] is gate.rlsd and "broken" not in gate.GATES
    assert [record.getMessage().partition(" of ")[0] for record in caplog.records] == ["gate 'rlsd'", "gate 'broken'"]
    assert gate.cost("iw_again") == "teacher" and gate.terms("iw_again") == ("divergence",)


def test_a_gate_that_asks_for_what_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gate.GATES, "curious", lambda weather_BL: (None, weather_BL))
    with pytest.raises(SettingError, match="it reads weather_BL; known: advantage_BL"):
        gate.get("curious")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mask_BL: torch.ones(mask_BL.shape),
        lambda mask_BL: None,
        lambda mask_BL: (None, None, None),
        lambda mask_BL: (1.0, None),
        lambda mask_BL: 1 / 0,
    ],
)
def test_a_gate_that_gives_no_two_weights_is_refused_when_it_is_named(wrong: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(gate.GATES, "wrong", wrong)
    with pytest.raises(
        SettingError, match=r"gate: 'wrong' does not work; it (gave a .*; return the weights|raised Zero)"
    ):
        gate.get("wrong")
