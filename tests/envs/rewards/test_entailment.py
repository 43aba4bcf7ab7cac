"""Entailment, held against direct computations of each pair alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from reward_models import HYPOTHESES, LABELS, NARROW, PREMISES, classifier, llama, logits, pair_ids, seeded
from tiny import model as tiny_model
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rlgkd.envs import rewards
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.tasks.grounded.env import grounded_summary
from rlgkd.envs.tasks.grounded.pairs import pair
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import load
from rlgkd.types import Item


def test_entailment_is_the_labels_probability_of_each_pair_alone(tokens: PreTrainedTokenizerFast) -> None:
    model = classifier()
    expected = [
        float(logits(model, *pair_ids(tokens, p, h)).softmax(-1)[1]) for p, h in zip(PREMISES, HYPOTHESES, strict=True)
    ]
    assert max(expected) - min(expected) > 0.1
    for batch_size in (1, 2, 64):
        given = rewards.Entailment(model, tokenizer=tokens, batch_size=batch_size)(PREMISES, HYPOTHESES)
        assert given == pytest.approx(expected, abs=1e-5)


def test_a_pair_too_long_loses_the_end_of_its_premise_and_never_of_its_hypothesis(
    tokens: PreTrainedTokenizerFast,
) -> None:
    model = classifier()
    reward = rewards.Entailment(model, tokenizer=tokens, max_tokens=8)
    premise, hypothesis = "the red dog sat the cat", "a cat sat"  # room for two words of the premise
    expected = float(logits(model, *pair_ids(tokens, "the red", hypothesis)).softmax(-1)[1])
    assert reward([premise], [hypothesis]) == [pytest.approx(expected, abs=1e-6)]
    assert expected != pytest.approx(float(logits(model, *pair_ids(tokens, premise, hypothesis)).softmax(-1)[1]))
    alone = float(logits(model, *pair_ids(tokens, "", "a cat sat the dog")).softmax(-1)[1])
    fits, too_long = reward([premise] * 2, ["a cat sat the dog", "a cat sat the dog sat"])
    assert fits == pytest.approx(alone, abs=1e-6)
    assert isinstance(too_long, ValueError) and "9 tokens are more than the 8" in str(too_long)
    items = [Item(key=str(n), prompt=premise) for n in range(2)]
    scores = Grader(reward, max_failed=1.0)(items, ["a cat sat", "a cat sat the dog sat"])
    assert scores[0].reward == pytest.approx(expected) and math.isnan(scores[1].reward)


def test_the_length_limit_is_the_smaller_of_the_tokenizers_and_the_models(tokens: PreTrainedTokenizerFast) -> None:
    many = " ".join(["the cat sat"] * 20)
    model = classifier()
    cut = " ".join(many.split()[: 24 - 4])
    expected = float(logits(model, *pair_ids(tokens, cut, "dog")).softmax(-1)[1])
    assert rewards.Entailment(model, tokenizer=tokens)([many], ["dog"]) == [pytest.approx(expected, abs=1e-6)]
    config = RobertaConfig(
        vocab_size=16, id2label=LABELS, max_position_embeddings=20, pad_token_id=1, type_vocab_size=2, **NARROW
    )
    roberta = seeded(lambda: RobertaForSequenceClassification(config))  # counts from 2 on: 18 places
    (value,) = rewards.Entailment(roberta, tokenizer=tokens)([many], ["dog"])
    cut = " ".join(many.split()[: 18 - 4])
    expected = float(logits(roberta, *pair_ids(tokens, cut, "dog")).softmax(-1)[1])
    assert value == pytest.approx(expected, abs=1e-6)


def test_a_hypothesis_that_says_nothing_earns_nothing(tokens: PreTrainedTokenizerFast) -> None:
    model = classifier()
    given = rewards.Entailment(model, tokenizer=tokens)(["a dog", "a dog", "a dog"], ["", "dog", " \n"])
    assert (given[0], given[2]) == (0.0, 0.0) and given[1] > 0
    assert rewards.Entailment(model, tokenizer=tokens)([], []) == []


@pytest.mark.parametrize("name", ["entailment", "Entailment", " ENTAILMENT"])
def test_the_label_is_found_by_name_whatever_its_case(tokens: PreTrainedTokenizerFast, name: str) -> None:
    for number in (0, 1):
        labels = {number: name, 1 - number: "not_entailment", 2: "non-entailment"}
        model = classifier(labels)
        expected = float(logits(model, *pair_ids(tokens, "a dog", "a cat")).softmax(-1)[number])
        assert rewards.Entailment(model, tokenizer=tokens)(["a dog"], ["a cat"]) == [pytest.approx(expected)]


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "not_entailment", 1: "yes"}])
def test_labels_that_do_not_say_it_are_refused_and_can_be_named(
    tokens: PreTrainedTokenizerFast, labels: dict[int, str]
) -> None:
    model = classifier(labels)
    with pytest.raises(SettingError) as caught:
        rewards.Entailment(model, tokenizer=tokens)
    assert caught.value.field == "entailment_label" and ", ".join(labels.values()) in str(caught.value)
    expected = float(logits(model, *pair_ids(tokens, "a dog", "a cat")).softmax(-1)[1])
    for asked in (1, labels[1], labels[1].lower()):
        reward = rewards.Entailment(model, tokenizer=tokens, entailment_label=asked)
        assert reward(["a dog"], ["a cat"]) == [pytest.approx(expected)]
    with pytest.raises(SettingError):
        rewards.Entailment(model, tokenizer=tokens, entailment_label="entails")


def test_settings_name_the_columns_that_are_compared(tokens: PreTrainedTokenizerFast) -> None:
    model = classifier()
    items = [Item(key="0", prompt="a", reference="the cat", columns={"passage": "the red dog sat"})]
    plain = rewards.Entailment(model, tokenizer=tokens)
    (by_passage,) = Grader(rewards.Entailment(model, tokenizer=tokens, premise="passage"))(items, ["a dog"])
    assert by_passage.reward == plain(["the red dog sat"], ["a dog"])[0]
    recall = rewards.Entailment(model, tokenizer=tokens, premise="completion", hypothesis="reference")
    assert Grader(recall)(items, ["a dog"])[0].reward == plain(["a dog"], ["the cat"])[0]
    with pytest.raises(SettingError, match="'pasage' does not work"):
        Grader(rewards.Entailment(model, tokenizer=tokens, premise="pasage"))(items, ["a dog"])


def test_a_causal_classifier_whose_end_token_is_its_padding_reads_to_the_end_in_any_batch(
    plain: PreTrainedTokenizerFast,
) -> None:
    model = llama(LlamaForSequenceClassification, num_labels=2, id2label={0: "no", 1: "entailment"})
    reward = rewards.Entailment(model, tokenizer=plain, template="{premise} {hypothesis}<end>")
    premises, hypotheses = ["a b c d e f g h"] * 3 + ["b"], ["a", "b c", "c d", "d"]
    together = reward(premises, hypotheses)
    alone = [reward([p], [h])[0] for p, h in zip(premises, hypotheses, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5) and len({round(value, 4) for value in alone}) >= 3


def test_an_encoder_decoder_classifier_is_a_classifier(tokens: PreTrainedTokenizerFast) -> None:
    config = BartConfig(
        vocab_size=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        init_std=0.5,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=40,
        id2label=LABELS,
        pad_token_id=0,
        eos_token_id=tokens.sep_token_id,
        bos_token_id=tokens.cls_token_id,
        decoder_start_token_id=0,
    )
    model = seeded(lambda: BartForSequenceClassification(config))
    expected = [
        float(logits(model, pair_ids(tokens, p, h)[0]).softmax(-1)[1])
        for p, h in zip(PREMISES, HYPOTHESES, strict=True)
    ]
    assert rewards.Entailment(model, tokenizer=tokens)(PREMISES, HYPOTHESES) == pytest.approx(expected, abs=1e-5)


def test_a_seq2seq_model_gives_1_against_0_at_the_first_place(plain: PreTrainedTokenizerFast) -> None:
    model = tiny_model("t5", vocabulary=16)
    one, zero = plain.convert_tokens_to_ids(["1", "0"])
    expected = []
    for premise, hypothesis in zip(PREMISES, HYPOTHESES, strict=True):
        ids = plain(f"premise: {premise} hypothesis: {hypothesis}")["input_ids"]
        first = logits(model, ids, decoder_input_ids=torch.tensor([[0]]))[0].double().exp()
        expected.append(float(first[one] / (first[one] + first[zero])))
    assert max(expected) - min(expected) > 0.02
    for batch_size in (1, 4):
        given = rewards.Entailment(model, tokenizer=plain, batch_size=batch_size)(PREMISES, HYPOTHESES)
        assert given == pytest.approx(expected, abs=1e-5)


def test_models_open_by_name_and_what_lacks_its_head_is_refused(
    tokens: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for name, model, own in (("bert", classifier(), tokens), ("t5", tiny_model("t5", vocabulary=16), plain)):
        model.save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
        opened = rewards.Entailment(tmp_path / name)(PREMISES, HYPOTHESES)
        assert opened == pytest.approx(rewards.Entailment(model, tokenizer=own)(PREMISES, HYPOTHESES), abs=1e-6)
    bare = seeded(lambda: BertModel(BertConfig(vocab_size=16, id2label=LABELS, **NARROW)))
    bare.save_pretrained(tmp_path / "bare")
    tokens.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="lacks weights"):
        rewards.Entailment(tmp_path / "bare")
    with pytest.raises(ModelError, match="ForSequenceClassification"):
        rewards.Entailment(llama(LlamaForCausalLM, id2label=LABELS), tokenizer=plain)
    with pytest.raises(SettingError, match="its tokenizer"):
        rewards.Entailment(classifier())


def test_the_embedded_classifier_gives_what_grounded_summary_gives() -> None:
    task = grounded_summary()
    items = [task.item("test", 3, index) for index in range(6)]
    texts = [*(pair("test", 3, index).hypothesis for index in range(4)), items[4].reference, ""]
    own = [score.reward for score in task.score(items, texts)]
    entailment = rewards.Entailment("embedded:grounded-nli", device="cpu", batch_size=1)
    passages = [str(item.columns["passage"]) for item in items]
    assert entailment(passages, texts) == pytest.approx(own, abs=1e-5)
    # And by hand: the prompt, the summary after a space, the end token.
    model = load("embedded:grounded-nli", auto_class=type(entailment._model.module))
    for item, text, value in zip(items[:5], texts, own, strict=False):
        ids = [*task.encode_prompt(item), *task.encode_completion(text)]
        assert value == pytest.approx(float(logits(model, ids).softmax(-1)[1]), abs=1e-5)
    assert own[4] > 0.5 and own[5] == 0.0


def test_no_gradient_no_dropout_and_the_same_number_twice(tokens: PreTrainedTokenizerFast) -> None:
    model = classifier(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    reward = rewards.Entailment(model, tokenizer=tokens)
    assert reward(PREMISES, HYPOTHESES) == reward(PREMISES, HYPOTHESES)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
