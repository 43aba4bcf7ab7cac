"""Quantised teachers, and teachers kept elsewhere by accelerate, each against the same model in plain transformers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import ModelError, SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel, decode, load, save
from rlgkd.lm.fast import supported
from rlgkd.lm.placement import is_dispatched
from rlgkd.types import Source

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
FEW = {"prompts_per_update": 2, "group_size": 2}
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def task() -> tiny.WordTask:
    return tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), prompts=("A", "A C"), max_new_tokens=6)


def environment() -> TextVecEnv:
    return TextVecEnv(task(), num_envs=2)


def student():
    return tiny.model(vocabulary=4)


@pytest.fixture
def folder(tmp_path) -> str:
    save(tiny.model(vocabulary=4, seed=1), TOKENIZER, tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def on_disk(folder, tmp_path):
    """A teacher half of which accelerate reads from a disk whenever it runs."""
    return AutoModelForCausalLM.from_pretrained(folder, device_map=ON_DISK, offload_folder=tmp_path / "disk")


def distilled(teacher, **settings) -> tuple[Distill, float]:
    agent = Distill(student(), environment(), teacher=teacher, divergence="reverse_kl", **FEW, **settings).learn(4)
    return agent, agent.last_metrics["train/divergence"]


def test_an_offloaded_teacher_distils_like_the_same_one_in_memory(folder, on_disk):
    assert is_dispatched(on_disk) and on_disk.lm_head.weight.device.type == "meta"
    there, divergence = distilled(on_disk)
    here, expected = distilled(folder)
    assert divergence == pytest.approx(expected, abs=1e-6)
    assert there.teacher is not None and not supported(on_disk, "decode") and not supported(on_disk, "forward")
    ours, theirs = (dict(agent.student.module.named_parameters()) for agent in (there, here))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def test_an_offloaded_teacher_writes_samples_together_and_is_evaluated_against(folder, on_disk):
    lm, plain = LanguageModel(on_disk, TOKENIZER), LanguageModel(load(folder), TOKENIZER)
    uniforms_BT = np.random.default_rng(0).random((4, 6))
    ours, theirs = (decode(m, [[1, 2], [3]], uniforms_BT=uniforms_BT, group=2, max_new_tokens=6) for m in (lm, plain))
    assert [c.ids for c in ours] == [c.ids for c in theirs]
    policy = LanguageModel(student(), TOKENIZER)
    there, here = (evaluate(policy, m, task(), prompts=2).scores()["reverse_kl"].mean for m in (lm, plain))
    assert there == pytest.approx(here, abs=1e-5)
    written = Distill(student(), environment(), teacher=on_disk, off_policy="teacher", student_fraction=0.0, **FEW)
    assert {t.source for t in written.learn(4).trajectories} == {Source.TEACHER}
    mixed = Distill(student(), environment(), teacher=on_disk, behaviour="teacher_mixed", **FEW).learn(4)
    assert {t.source for t in mixed.trajectories} == {Source.MIXED}


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_teacher_has_a_device_of_its_own(folder, device):
    agent, divergence = distilled(folder, teacher_device=device)
    assert agent.teacher is not None and agent.teacher.device.type == "cpu"
    assert divergence == pytest.approx(distilled(folder)[1], abs=1e-6)


def test_a_device_that_is_not_here_and_a_loaded_model_to_be_spread_are_refused(folder):
    for name in ("cuda:7", "nonsense"):
        with pytest.raises(SettingError, match="teacher_device"):
            distilled(folder, teacher_device=name)
    for settings in ({"teacher_device": "auto"}, {"teacher_quantization": "8bit"}):
        with pytest.raises(ModelError, match=r"teacher: .*it is used as it was opened"):
            distilled(student(), **settings)
        with pytest.raises(SettingError, match=r"teacher_decay: .*leave teacher_quantization and teacher_device out"):
            PPO(student(), environment(), teacher=folder, teacher_decay=0.9, **settings)


def test_a_student_cannot_be_spread(on_disk):
    with pytest.raises(ModelError, match=r"student: .*only a teacher may be so"):
        Reinforce(on_disk, environment(), alpha=0.0)


@pytest.mark.parametrize(("bits", "off"), [("8bit", 0.05), ("4bit", 0.5)])
def test_a_quantised_teacher_gives_the_probabilities_of_transformers_own(folder, bits, off, tmp_path):
    pytest.importorskip("bitsandbytes")
    agent, divergence = distilled(folder, teacher_quantization=bits)
    lm = agent.teacher
    assert lm is not None and lm.module.is_quantized and not supported(lm.module, "decode")
    tokens_1T = torch.tensor([[1, 2, 3, 1]])
    with torch.no_grad():
        ours_TV = lm.logits(lm.body(tokens_1T).last_hidden_state)
        plain_TV = lm.module(tokens_1T).logits
        full_TV = load(folder)(tokens_1T).logits
    torch.testing.assert_close(ours_TV, plain_TV, rtol=1e-4, atol=1e-4)
    assert 0 < float((plain_TV - full_TV).abs().mean()) < off * float(full_TV.abs().mean())
    assert divergence == pytest.approx(distilled(folder)[1], rel=2 * off)
    before = copy.deepcopy(lm.module.state_dict())
    given = distilled(lm.module)[0].teacher  # opened elsewhere, it is taken as it is
    assert given is not None and given.module is lm.module
    assert all(torch.equal(value, before[name]) for name, value in lm.module.state_dict().items())
    lm.module.save_pretrained(tmp_path / "quantised")
    TOKENIZER.save_pretrained(tmp_path / "quantised")
    assert load(tmp_path / "quantised").is_quantized
    with pytest.raises(ModelError, match=r"student: .*cannot be trained"):
        Reinforce(str(tmp_path / "quantised"), environment(), alpha=0.0)


def test_without_bitsandbytes_the_remedy_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"teacher_quantization: .*pip install 'rlgkd\[quantization\]'"):
        distilled(folder, teacher_quantization="4bit")
