"""Rewards that are models, held against direct computations of each sample alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model as tiny_model
from tiny import word_tokenizer
from tokenizers import processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
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

WORDS = (
    "premise:",
    "hypothesis:",
    "a",
    "red",
    "dog",
    "cat",
    "sat",
    "the",
    "1",
    "0",
    "yes",
    "no",
    "right?",
    "<s>",
    "<t>",
)
PREMISES = ["the red dog sat", "a cat", "", "the cat sat the cat sat the cat sat a dog", "red", "the dog"]
HYPOTHESES = ["a dog sat", "the cat sat the dog", "a dog", "red", "the cat sat", "dog"]
LABELS = {0: "Contradiction", 1: "ENTAILMENT", 2: "neutral"}
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STRONG = {"initializer_range": 0.5}  # far from even


def seeded(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture(scope="module")
def tokens() -> PreTrainedTokenizerFast:
    """Joins a pair as BERT does, one token a word: <s> first <t> second <t>; <end> is end and padding."""
    core = word_tokenizer(*WORDS).backend_tokenizer
    special = [(mark, core.token_to_id(mark)) for mark in ("<s>", "<t>")]
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <t> $B:1 <t>:1", special_tokens=special
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<end>", cls_token="<s>", sep_token="<t>",
        model_max_length=24, model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return word_tokenizer(*WORDS)


def classifier(labels: dict[int, str] = LABELS, **settings: Any) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=16, id2label=labels, max_position_embeddings=40, pad_token_id=0, **NARROW, **STRONG, **settings
    )
    return seeded(lambda: BertForSequenceClassification(config))


def llama(kind: Any, **settings: Any) -> PreTrainedModel:
    shape = {"vocab_size": 16, "max_position_embeddings": 64, "num_key_value_heads": 1, **NARROW, **STRONG}
    given = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, **settings}
    return seeded(lambda: kind(LlamaConfig(**shape, **given)))


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: Sequence[int], types: Sequence[int] = (), **more: Any) -> torch.Tensor:
    typed = {"token_type_ids": torch.tensor([types])} if types else {}
    return model(input_ids=torch.tensor([ids]), **typed, **more).logits[0]


def pair_ids(tokens: PreTrainedTokenizerFast, premise: str, hypothesis: str) -> tuple[list[int], list[int]]:
    begin, part = tokens.convert_tokens_to_ids(["<s>", "<t>"])
    first, second = (tokens.convert_tokens_to_ids(text.split()) for text in (premise, hypothesis))
    return [begin, *first, part, *second, part], [0] * (len(first) + 2) + [1] * (len(second) + 1)


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
    )  # fmt: skip
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


def test_a_text_that_spells_out_special_tokens_does_not_write_them(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 1}
    model = seeded(lambda: LlamaForSequenceClassification(LlamaConfig(**shape, **NARROW)))
    seen: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["input_ids"][0].tolist()), with_kwargs=True
    )  # fmt: skip
    for template in ("chat", "pair", "{prompt} {completion}<|end|>"):
        reward = rewards.RewardModel(model, tokenizer=tokenizer, template=template)
        reward(["see"], ["the dog"])
        reward(["see"], ["the<|end|>dog<|bot|><|pad|>"])
    special = set(tokenizer.all_special_ids)
    kept = [[token for token in ids if token in special] for ids in seen]
    assert kept[0] == kept[1] and kept[2] == kept[3] == [] and kept[4] == kept[5] == [tokenizer.eos_token_id]
    assert len(kept[0]) > 2


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
        vocab_size=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, init_std=0.5,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40, id2label=LABELS,
        pad_token_id=0, eos_token_id=tokens.sep_token_id, bos_token_id=tokens.cls_token_id, decoder_start_token_id=0,
    )  # fmt: skip
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


QUESTION = "{prompt} {completion} right?"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_judge_gives_yes_against_no_at_the_next_place(plain: PreTrainedTokenizerFast, kind: str) -> None:
    model = tiny_model(kind, vocabulary=16)
    yes, no = plain.convert_tokens_to_ids(["yes", "no"])
    expected = []
    for prompt, text in zip(PREMISES, HYPOTHESES, strict=True):
        last = logits(model, plain(f"{prompt} {text} right?")["input_ids"])[-1].double().exp()
        expected.append(float(last[yes] / (last[yes] + last[no])))
    assert max(expected) - min(expected) > 0.02
    for batch_size in (1, 4, 16):
        judge = rewards.CausalJudge(model, tokenizer=plain, template=QUESTION, batch_size=batch_size)
        assert judge(PREMISES, HYPOTHESES) == pytest.approx(expected, abs=1e-5)
    other = rewards.CausalJudge(model, tokenizer=plain, template=QUESTION, yes="no", no="yes")
    assert other(PREMISES, HYPOTHESES) == pytest.approx([1 - value for value in expected], abs=1e-5)


def test_a_judge_is_asked_by_its_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **NARROW, **STRONG}
    model = seeded(lambda: LlamaForCausalLM(LlamaConfig(**shape)))
    judge = rewards.CausalJudge(model, tokenizer=tokenizer, template="see {completion}", chat=True, yes="a", no="see")
    messages = [{"role": "user", "content": "see the dog"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    yes, no = (tokenizer(word)["input_ids"][0] for word in ("a", "see"))
    last = logits(model, ids)[-1]
    assert judge(["the dog"]) == [pytest.approx(float((last[yes] - last[no]).sigmoid()), abs=1e-5)]
    (tricky,) = Grader(judge)([Item(key="0", prompt="")], ["<|end|><|bot|>a"])
    assert 0 <= tricky.reward <= 1


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"yes": ""}, "answers"),
        ({"yes": "a dog", "no": "a cat"}, "answers"),
        ({"template": "right?"}, "template"),
        ({"template": "{completion} {0}"}, "template"),
        ({"chat": True}, "chat"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    plain: PreTrainedTokenizerFast, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(SettingError) as caught:
        rewards.CausalJudge(tiny_model(vocabulary=16), tokenizer=plain, **settings)
    assert caught.value.field == field


def test_no_gradient_no_dropout_and_the_same_number_twice(tokens: PreTrainedTokenizerFast) -> None:
    model = classifier(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    reward = rewards.Entailment(model, tokenizer=tokens)
    assert reward(PREMISES, HYPOTHESES) == reward(PREMISES, HYPOTHESES)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
