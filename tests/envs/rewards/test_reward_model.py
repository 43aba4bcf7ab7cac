"""Reward models, held against direct computations of each sample alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from reward_models import HYPOTHESES, NARROW, PREMISES, STRONG, classifier, llama, logits, pair_ids, seeded
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlgkd.envs import rewards
from rlgkd.envs.rewards.grader import Grader
from rlgkd.errors import ModelError, SettingError
from rlgkd.types import Item


def reward_model(**settings: Any) -> PreTrainedModel:
    return llama(LlamaForSequenceClassification, num_labels=1, **settings)


def test_a_reward_model_gives_its_logit_or_the_sigmoid(plain: PreTrainedTokenizerFast) -> None:
    model = reward_model(pad_token_id=15)
    expected = [float(logits(model, plain(f"{p} {h}")["input_ids"])) for p, h in zip(PREMISES, HYPOTHESES, strict=True)]
    assert max(expected) - min(expected) > 0.5
    for batch_size in (1, 4):
        made = {"tokenizer": plain, "batch_size": batch_size}
        assert rewards.RewardModel(model, **made)(PREMISES, HYPOTHESES) == pytest.approx(expected, abs=1e-5)
        squashed = rewards.RewardModel(model, sigmoid=True, **made)(PREMISES, HYPOTHESES)
        assert squashed == pytest.approx([1 / (1 + math.exp(-x)) for x in expected], abs=1e-5)


def test_a_reward_model_without_padding_reads_each_row_alone(plain: PreTrainedTokenizerFast) -> None:
    model = reward_model(pad_token_id=None)
    expected = [float(logits(model, plain(f"{p} {h}")["input_ids"])) for p, h in zip(PREMISES, HYPOTHESES, strict=True)]
    assert rewards.RewardModel(model, tokenizer=plain)(PREMISES, HYPOTHESES) == pytest.approx(expected, abs=1e-5)


def test_a_template_may_end_with_the_end_token_and_name_columns(plain: PreTrainedTokenizerFast) -> None:
    model = reward_model(pad_token_id=15)
    reward = rewards.RewardModel(model, tokenizer=plain, template="{level} {completion} the {reference}<end>")
    items = [Item(key="0", prompt="sat", reference="cat", columns={"level": "red"})]
    expected = float(logits(model, [*plain("red a dog the cat")["input_ids"], 0]))
    (score,) = Grader(reward)(items, ["a dog"])
    assert score.reward == pytest.approx(expected, abs=1e-5)


def test_a_chat_template_puts_the_prompt_as_the_users_message(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"num_labels": 1, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = seeded(lambda: LlamaForSequenceClassification(LlamaConfig(**shape, **NARROW, **STRONG)))
    prompts, texts = ["see a dog", "the red cat"], ["a red house", "cat"]
    expected = []
    for prompt, text in zip(prompts, texts, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        expected.append(float(logits(model, ids)))
    given = rewards.RewardModel(model, tokenizer=tokenizer, template="chat")(prompts, texts)
    assert given == pytest.approx(expected, abs=1e-5) and abs(given[0] - given[1]) > 1e-3
    broken = copy.deepcopy(tokenizer)
    for template, why in (("{{ 1 // 0 }}", "fails: ZeroDivisionError"), (None, "has no chat template")):
        broken.chat_template = template
        with pytest.raises(SettingError, match=rf"template: 'chat' .*{why}.* give a template of your own, or pair"):
            rewards.RewardModel(model, tokenizer=broken, template="chat")


def test_a_pair_is_joined_by_the_tokenizer(tokens: PreTrainedTokenizerFast) -> None:
    model = classifier({0: "score"})
    expected = [float(logits(model, *pair_ids(tokens, p, h))) for p, h in zip(PREMISES, HYPOTHESES, strict=True)]
    reward = rewards.RewardModel(model, tokenizer=tokens, template="pair")
    assert reward(PREMISES, HYPOTHESES) == pytest.approx(expected, abs=1e-5)


def test_a_reward_model_has_one_output_and_cuts_nothing(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="one output, not 3"):
        rewards.RewardModel(classifier(), tokenizer=plain)
    with pytest.raises(SettingError, match="Label"):
        rewards.Entailment(classifier({0: "Label"}), tokenizer=plain, entailment_label=0)
    reward = rewards.RewardModel(reward_model(pad_token_id=15), tokenizer=plain, max_tokens=4)
    fits, too_long = reward(["a dog", "a red dog"], ["the cat", "the cat"])
    assert isinstance(fits, float) and isinstance(too_long, ValueError)


def test_a_text_that_spells_out_special_tokens_does_not_write_them(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 1}
    model = seeded(lambda: LlamaForSequenceClassification(LlamaConfig(**shape, **NARROW)))
    seen: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    for template in ("chat", "pair", "{prompt} {completion}<|end|>"):
        reward = rewards.RewardModel(model, tokenizer=tokenizer, template=template)
        reward(["see"], ["the dog"])
        reward(["see"], ["the<|end|>dog<|bot|><|pad|>"])
    special = set(tokenizer.all_special_ids)
    kept = [[token for token in ids if token in special] for ids in seen]
    assert kept[0] == kept[1] and kept[2] == kept[3] == [] and kept[4] == kept[5] == [tokenizer.eos_token_id]
    assert len(kept[0]) > 2
