"""Saved folders: in plain transformers they generate what was generated here; their precision can be chosen."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rlgkd.agents import Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.lm import load, save
from rlgkd.lm.lora import add_adapters

TOKENIZER = tiny.word_tokenizer("A", "B", "C", "<turn>")
TOKENIZER.add_special_tokens({"additional_special_tokens": ["<turn>"]})
PADDED = len(TOKENIZER) + 3
PROMPTS = ("A", "A B C", "C", "B B", "C A")


def bent(kind: str = "llama"):
    """A model whose padding wins, with two end ids and a generation config that would write something else."""
    module = tiny.model(kind, vocabulary=PADDED)
    with torch.no_grad():
        weight = module.get_output_embeddings().weight
        weight[len(TOKENIZER) :] = 3 * weight[1:4]
    given = module.generation_config
    given.eos_token_id = [0, TOKENIZER.convert_tokens_to_ids("<turn>")]
    given.repetition_penalty, given.no_repeat_ngram_size, given.min_new_tokens = 3.0, 2, 4
    given.do_sample, given.temperature, given.top_k = True, 0.7, 5
    return module


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_saved_folder_generates_in_plain_transformers_what_the_agent_generates(tmp_path, caplog, kind):
    module = bent(kind)
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0, prompts=PROMPTS, max_new_tokens=8), num_envs=2)
    agent = Reinforce(module, env, alpha=0.0, prompts_per_update=2, group_size=2)
    agent.save(tmp_path)
    dropped = "without min_new_tokens, no_repeat_ngram_size, repetition_penalty"
    assert all(name in caplog.text for name in dropped.split(", ")[1:])
    plain = (AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM).from_pretrained(tmp_path)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([[*TOKENIZER(prompt)["input_ids"], *([0] if kind == "t5" else [])]])
        written = plain.generate(ids, max_new_tokens=8, do_sample=False)[0]
        written = written[1:] if kind == "t5" else written[ids.shape[1] :]
        assert int(written.max()) < len(TOKENIZER)
        texts.append(TOKENIZER.decode(written, skip_special_tokens=True).strip())
    assert texts == agent.generate(PROMPTS)
    if kind == "llama":  # repeats itself, which the penalties would not let it
        assert any(len({*text.split()}) < len(text.split()) for text in texts)
    kept = plain.generation_config
    assert (kept.do_sample, kept.temperature, kept.top_k) == (True, 0.7, 5)
    assert module.generation_config.repetition_penalty == 3.0  # the caller's stays


def test_a_temperature_without_sampling_does_not_stop_a_save(tmp_path):
    module = tiny.model(vocabulary=len(TOKENIZER))
    module.generation_config.temperature = 0.7
    save(module, TOKENIZER, tmp_path)
    assert "temperature" not in json.loads((tmp_path / "generation_config.json").read_text())


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["whole", "LoRA"])
def test_the_saved_precision_can_be_chosen_and_the_live_model_keeps_its_own(tmp_path, settings):
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0), num_envs=2)
    agent = Reinforce(tiny.model(vocabulary=5), env, alpha=0.0, saved_dtype="bfloat16", **settings)
    agent.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)  # in the precision that its config names
    assert {p.dtype for p in saved.parameters()} == {torch.bfloat16}
    assert agent.student.module.dtype == torch.float32
    ours = agent.student.module.get_output_embeddings().weight
    torch.testing.assert_close(saved.get_output_embeddings().weight, ours.detach().bfloat16(), rtol=0, atol=0)
    assert load(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("rank", [0, 2])
def test_tied_embeddings_are_saved_once_in_another_precision_too(tmp_path, rank):
    module = tiny.model(vocabulary=len(TOKENIZER))
    module.config.tie_word_embeddings = True
    module.tie_weights()
    if rank:
        add_adapters(module, rank)
    held = {}
    for dtype in (None, torch.bfloat16):
        save(module, TOKENIZER, tmp_path / str(dtype), dtype=dtype)
        held[dtype] = load_file(tmp_path / str(dtype) / "model.safetensors")
    assert held[None].keys() == held[torch.bfloat16].keys() and "lm_head.weight" not in held[None]
    sizes = [sum(value.nbytes for value in state.values()) for state in held.values()]
    assert sizes[0] == 2 * sizes[1]
    again = load(tmp_path / str(torch.bfloat16))
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
