"""Cuts are measured at the prefixes where the student will work, and the best is the one that a slow search finds."""

from __future__ import annotations

import pytest
import tiny
import torch
import yaml

from rlgkd.agents import GRPO, build
from rlgkd.cutting import best_cut, cuts, jeffreys
from rlgkd.envs import make_sb3_vec_env
from rlgkd.errors import CheckpointError, ModelError, SettingError
from rlgkd.lm import load, load_tokenizer, open_by_name
from rlgkd.lm.copies import weights_digest
from rlgkd.rollout import sample_episodes
from rlgkd.scripts.cli import main
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.cut import cut
from rlgkd.scripts.runs.train import start

ENV = "rlgkd/GroundedSummary-v0"
TEACHER = "embedded:grounded-teacher"


@pytest.fixture(scope="module")
def task():
    return make_sb3_vec_env(ENV).task


def test_each_cut_is_as_far_from_the_whole_as_plain_transformers_says(task):
    whole = open_by_name(TEACHER)
    before = weights_digest(whole.module)
    found = list(cuts(whole, task, keep=2, prompts=3))
    assert [one.kept for one in found] == [(2, 3), (0, 3), (0, 1)]
    assert weights_digest(whole.module) == before and whole.module.config.num_hidden_layers == 4
    episodes = sample_episodes(whole, task, [task.item("train", 0, index) for index in range(3)], seed=0)
    for one in found:
        module = load(TEACHER, layers=one.kept)
        kls = {"forward": [], "reverse": []}
        for episode in episodes:
            ids, actions = torch.from_numpy(episode.tokens_T)[None].long(), torch.from_numpy(episode.action_mask_T)[1:]
            with torch.no_grad():
                p, q = (
                    m(ids, use_cache=False).logits[0, :-1][actions].double().log_softmax(-1)
                    for m in (whole.module, module)
                )
            kls["forward"].append((p.exp() * (p - q)).sum(-1))
            kls["reverse"].append((q.exp() * (q - p)).sum(-1))
        assert one.forward_kl == pytest.approx(float(torch.cat(kls["forward"]).mean()), rel=1e-3)
        assert one.reverse_kl == pytest.approx(float(torch.cat(kls["reverse"]).mean()), rel=1e-3)


def test_the_best_cut_has_the_smallest_divergence_and_a_layer_that_does_nothing_goes_first(task):
    whole = open_by_name(TEACHER)
    with torch.no_grad():  # a layer that adds nothing to the stream of states
        for matrix in (whole.body.layers[1].self_attn.o_proj, whole.body.layers[1].mlp.down_proj):
            matrix.weight.zero_()
    best = best_cut(whole, task, keep=3)
    assert best.left_out == range(1, 2) and jeffreys(best) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("keep", [0, 4, 5])
def test_a_number_of_layers_that_the_model_cannot_be_cut_to_is_refused(task, keep):
    with pytest.raises(SettingError, match=f"layers: {keep} .*keep from 1 to 3"):
        best_cut(open_by_name(TEACHER), task, keep)


def test_a_model_without_a_list_of_layers_is_refused(task):
    model = tiny.model("gpt2", vocabulary=len(task.tokenizer))
    with pytest.raises(ModelError, match="`layers` list"):
        GRPO(model, ENV, tokenizer=task.tokenizer, alpha=0, student_layers=1)


def test_a_student_of_another_vocabulary_is_refused_before_it_writes_any_text(caplog):
    with pytest.raises(ModelError, match="student: "):
        GRPO("embedded:translate-student", ENV, alpha=0, student_layers=1)
    assert "are left out" not in caplog.text


def test_an_agent_that_is_given_a_number_is_the_agent_that_is_given_the_layers():
    chosen = GRPO(TEACHER, ENV, teacher=TEACHER, student_layers=2, seed=1)
    named = GRPO(TEACHER, ENV, teacher=TEACHER, student_layers=chosen.config.model.student_layers, seed=1)
    assert chosen.config == named.config and len(chosen.config.model.student_layers) == 2
    assert weights_digest(chosen.student.module) == weights_digest(named.student.module)


def test_a_student_is_opened_once_to_be_cut(monkeypatch):
    opened = []
    load_model = build.load
    monkeypatch.setattr(build, "load", lambda name, **more: (opened.append(name), load_model(name, **more))[1])
    GRPO(TEACHER, ENV, alpha=0.0, student_layers=2)
    assert opened.count(TEACHER) == 1


def test_a_run_keeps_the_layers_that_it_began_with(tmp_path):
    few = ["tokens=1", "eval_prompts=2", "prompts_per_update=2"]
    start(read("quickstart", [f"student={TEACHER}", "student_layers=3", *few]), tmp_path / "run", quiet=True)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["student_layers"]
    task = make_sb3_vec_env(ENV).task
    assert kept == list(best_cut(open_by_name(TEACHER), task, keep=3).kept)
    assert load(tmp_path / "run").config.num_hidden_layers == 3


def test_the_command_prints_every_block_and_saves_the_best(tmp_path, capsys):
    cut(TEACHER, 2, ENV, [], tmp_path / "cut", prompts=4)
    shown = capsys.readouterr().out
    assert all(block in shown for block in ("0 to 1", "1 to 2", "2 to 3"))
    task = make_sb3_vec_env(ENV).task
    best = min(cuts(open_by_name(TEACHER), task, 2, prompts=4), key=jeffreys)
    saved = load(tmp_path / "cut")
    assert weights_digest(saved) == weights_digest(load(TEACHER, layers=best.kept))
    assert len(load_tokenizer(tmp_path / "cut")) == len(task.tokenizer)
    with pytest.raises(CheckpointError, match="it exists"):
        cut(TEACHER, 2, ENV, [], tmp_path / "cut", prompts=4)


def test_a_comparison_wants_one_student_for_all_cells(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "compare", f"student={TEACHER}", "student_layers=2"])
    assert "student_layers: 2 " in (error := capsys.readouterr().err) and "rlgkd cut" in error
