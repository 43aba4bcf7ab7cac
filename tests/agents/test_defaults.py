"""What is chosen by model and job: nothing for small models, and for larger ones what is not given, with a reason."""

from __future__ import annotations

import logging

import pytest
import tiny
from transformers import LlamaConfig

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.agents.defaults import CHOSEN, SMALL, choices, token_budget
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.lm.loading import load
from rlgkd.lm.size import ModelSize, model_size
from rlgkd.scripts.config.choices import chooser
from rlgkd.scripts.config.reading import dump, read

GIB = 2**30


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> str:
    """The folder of a model of SmolLM2-135M's shape, without weights."""
    folder = tmp_path_factory.mktemp("models") / "larger"
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    LlamaConfig(**shape, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True).save_pretrained(folder)
    return str(folder)


def chosen(policy, kind=Reinforce, given=(), **settings) -> dict[str, object]:
    found = choices(policy, kind.Config(**settings), {*given, *settings}, "cpu")
    assert all(choice.reason for choice in found)
    return {choice.setting: choice.value for choice in found}


def test_the_size_of_a_model_is_that_of_its_weights(larger):
    for name in ("embedded:grounded-student", "embedded:grounded-teacher"):
        module = load(name)
        size = model_size(name)
        assert size == model_size(module)
        assert size.parameters == sum(p.numel() for p in module.parameters()) < SMALL
        assert (size.layers, size.hidden) == (module.config.num_hidden_layers, module.config.hidden_size)
    assert model_size(larger) == ModelSize(134_515_008, 30, 576)
    assert model_size(larger, 8).parameters < SMALL
    assert model_size("no/such/folder") is None


@pytest.mark.parametrize("policy", ["embedded:grounded-teacher", "no/such/folder"])
def test_nothing_is_chosen_for_small_models_and_for_what_cannot_be_opened(policy):
    assert chosen(policy) == {}
    assert chosen(policy, Distill) == {}


def test_a_learning_rate_goes_by_job_size_and_adapters(larger):
    assert chosen(larger)["learning_rate"] == 1e-5
    assert chosen(larger, lora_rank=8)["learning_rate"] == pytest.approx(1e-4)
    assert chosen(larger, Distill)["learning_rate"] == 5e-5
    assert chosen(larger, Distill, lora_rank=8)["learning_rate"] == pytest.approx(5e-4)
    assert chosen(larger, alpha=1.0)["learning_rate"] == 5e-5
    assert chosen(larger, student_layers=8) == {}


def test_what_is_given_stays_and_what_an_agent_fixes_is_not_chosen(larger):
    assert "learning_rate" not in chosen(larger, learning_rate=3e-4)
    assert "group_size" not in chosen(larger, Distill, group_size=4)
    assert chosen(larger, Distill)["group_size"] == 1
    assert chosen(larger, given=CHOSEN) == {}
    assert set(chosen(larger, PPO)) <= {*CHOSEN}


def test_a_token_budget_fits_the_memory():
    size, config = ModelSize(1_500_000_000, 28, 1536), Reinforce.Config()
    budgets = [token_budget(size, gib * GIB, "bfloat16", config) for gib in (16, 40, 80, 640)]
    assert budgets == sorted(budgets)
    assert (budgets[0], budgets[-1]) == (1024, 16384)
    assert budgets[1] % 256 == 0 and 1024 < budgets[2] < 16384
    kept = 81 * 1536 * 28 * budgets[2]  # GPU memory of the backward pass, and of weights, gradient and AdamW
    assert kept + 18 * size.parameters < 80 * GIB
    light = Reinforce.Config(gradient_checkpointing=True)
    assert token_budget(size, 80 * GIB, "bfloat16", light) > budgets[2]
    assert token_budget(size, 16 * GIB, "bfloat16", config, longest=3000) == 3000
    assert token_budget(size, 80 * GIB, "float32", config) < budgets[2]


def test_a_run_says_its_choices_and_its_file_holds_them(larger, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"student: {larger}\nteacher: null\nalpha: 0\nlearning_rate: auto\neval_every: 1000\ntrain_prompts: 2\n"
    )
    said: list[str] = []
    settings = read(file, ["group_size=3", "device=cpu"], choose=chooser(said.append))
    assert settings.algorithm.optimizer.learning_rate == 1e-5
    assert settings.algorithm.sampling.group_size == 3
    assert (settings.eval_prompts, settings.eval_every_prompts) == (64, 32)
    assert said[0].startswith("chosen: learning_rate: 1e-05, for rewards and all of 135 million parameters")
    assert all(line.startswith("chosen: ") and ", " in line for line in said)
    again = tmp_path / "again.yaml"
    again.write_text(dump(settings))
    unsaid: list[str] = []
    assert read(again, choose=chooser(unsaid.append)) == settings
    assert unsaid == []


def test_a_recipes_learning_rate_is_that_of_its_models(larger, tmp_path):
    """`rlgkd train sft mine.yaml` trained all of SmolLM2-135M at 1e-3, with which small models learn."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"student: {larger}\nteacher: null\n")

    def rate(*overrides: str) -> object:
        said: list[str] = []
        settings = read(file, ["device=cpu", *overrides], recipe="sft", choose=chooser(said.append))
        return settings.algorithm.optimizer.learning_rate

    assert rate() == 5e-5 and rate("lora_rank=4") == 5e-4
    assert rate("learning_rate=0.002") == 0.002
    assert rate("student=embedded:grounded-student") == read("sft").algorithm.optimizer.learning_rate == 1e-3
    file.write_text(f"student: {larger}\nteacher: null\nlearning_rate: 0.003\n")
    assert rate() == 0.003


def test_a_run_of_an_embedded_model_chooses_one_thread_alone(tmp_path):
    said: list[str] = []
    for name in ("quickstart", "sft", "grpo"):
        chosen_by_run = read(name, ["device=cpu"], choose=chooser(said.append))
        assert chosen_by_run == read(name, ["device=cpu", "threads=1"])
        assert read(name, ["device=cpu", "threads=2"], choose=chooser(said.append)).threads == 2
    assert read("quickstart", ["learning_rate=auto"]).algorithm.optimizer.learning_rate == 1e-4
    assert len(said) == 3 and all(line.startswith("chosen: threads: 1, ") for line in said)


def test_an_agent_of_a_larger_loaded_model_says_what_it_chooses(caplog, monkeypatch):
    monkeypatch.setattr("rlgkd.agents.defaults.SMALL", 1000)
    task = tiny.WordTask(tiny.word_tokenizer("A", "B", "C"), lambda text: 0.0, max_new_tokens=4)
    student = tiny.model(vocabulary=4)
    with caplog.at_level(logging.WARNING, "rlgkd.agents.agent"):
        agent = Reinforce(student, TextVecEnv(task), alpha=0.0, device="cpu")
        given = Reinforce(student, TextVecEnv(task), alpha=0.0, learning_rate=1e-3, device="cpu")
    assert agent.config.optimizer.learning_rate == agent.policy.optimizer.param_groups[0]["lr"] == 1e-5
    assert given.config.optimizer.learning_rate == 1e-3
    assert [record.getMessage()[:30] for record in caplog.records] == ["chosen: learning_rate: 1e-05, "]
