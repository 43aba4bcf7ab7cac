"""Rewards that are models: entailment, a reward model, a causal model that judges. Public in rlgkd.envs.rewards.

Each opens its model when it is made and scores a batch in some forward passes, with the numbers that it would give one
by one. A sample too long for the model has failed and is never cut; of an entailment the premise alone is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from rlgkd.envs.rewards.batched_model import Model, RowReader, Tokens
from rlgkd.envs.rewards.grader import takes
from rlgkd.envs.rewards.prompts import Row, Template, chat_form, columns_of, first_tokens, pair_form, text_form
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.loading import load_config
from rlgkd.lm.shared_prefix import last_token_layouts, pack_shared_prefixes, supports_shared_prefix

CLASSIFIER = "ForSequenceClassification"
SEQ2SEQ = "premise: {premise} hypothesis: {hypothesis}"
"""How the TRUE models are asked; they answer 1 or 0 (Honovich et al., 2022, arXiv:2204.04991)."""
JUDGED = "Question: {prompt}\nAnswer: {completion}\nIs the answer right and complete? Say yes or no:"


class Entailment:
    """Probability that a premise entails a hypothesis, in [0, 1], by a classifier or a T5-style model.

    Exploited by hypotheses that say little or copy the premise, and by texts unlike those that the model learnt from. A
    hypothesis that says nothing earns 0.
    """

    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokens | None = None,
        batch_size: int = 64,
        device: str = "auto",
        max_tokens: int | None = None,
        premise: str = "prompts",
        hypothesis: str = "completions",
        template: str | None = None,
        entailment_label: str | int | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: A path, a hub name, `embedded:grounded-nli` or a loaded model: a sequence classifier, or a seq2seq
                model that answers `1` or `0`.
            tokenizer: By default the one beside the model; a loaded model needs it.
            batch_size: Pairs in a forward pass.
            device: `auto` is the accelerator, if there is one; a loaded model then stays where it is.
            max_tokens: Length limit of a pair, by default the model's. Beyond it the premise loses its end.
            premise: Which of `prompts`, `references`, `completions` and the data's columns are premises.
            hypothesis: And which are hypotheses.
            template: A text with `{premise}` and `{hypothesis}`, for a model that was trained on such; it may end with
                the end token. By default the `pair_template` of the model's configuration, or `SEQ2SEQ`, or else
                the tokenizer joins the pair.
            entailment_label: Name or number of the classifier's label, where none is called `entailment`.

        Raises: ModelError, SettingError.
        """
        config, kind = _config(model), _kind(model)
        classifies = kind.endswith(CLASSIFIER) or not config.is_encoder_decoder
        auto_class = AutoModelForSequenceClassification if classifies else AutoModelForSeq2SeqLM
        if classifies:
            _check_loaded(model, CLASSIFIER)
            self._label = _entailment(config, entailment_label)
        self._reader = RowReader(
            model, tokenizer, auto_class, batch_size=batch_size, device=device, max_tokens=max_tokens
        )  # fmt: skip
        tokens = self._reader.tokenizer
        template = template or getattr(config, "pair_template", None) or (None if classifies else SEQ2SEQ)
        self._form = (
            text_form(tokens, Template(template, ("premise", "hypothesis")))
            if template
            else pair_form(tokens, "premise", "hypothesis")
        )
        self._value = self._of_classifier if classifies else self._of_seq2seq
        if not classifies:
            self._answers = first_tokens(tokens, "1", "0")
        self._names = columns_of((premise, hypothesis))
        self.__signature__ = takes(*self._names)

    def __call__(self, *columns: Sequence[str], **named: Sequence[str]) -> list[float | Exception]:
        """One probability for each pair, or why it has none."""
        given = self.__signature__.bind(*columns, **named).arguments
        premises, hypotheses = (given[name] for name in self._names)
        values: list[float | Exception] = [0.0] * len(hypotheses)
        said = [number for number, hypothesis in enumerate(hypotheses) if hypothesis.strip()]
        rows = [self._row(premises[number], hypotheses[number]) for number in said]
        for number, value in zip(said, self._reader.read(rows, self._value), strict=True):
            values[number] = value
        return values

    def _row(self, premise: str, hypothesis: str) -> Row:
        """The pair, its premise cut to what fits; too long still where the hypothesis alone does not."""

        def length(kept: int) -> int:
            return len(self._form.ids(premise=premise[:kept], hypothesis=hypothesis)["input_ids"])

        whole = self._form.ids(premise=premise, hypothesis=hypothesis)
        if len(whole["input_ids"]) <= self._reader.limit:
            return whole
        kept = bisect_right(range(len(premise)), self._reader.limit, key=length) - 1
        return self._form.ids(premise=premise[: max(kept, 0)], hypothesis=hypothesis)

    def _of_classifier(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._classified(inputs).float().softmax(-1)[:, self._label]

    def _classified(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, labels]: a causal classifier reads a premise once for all its hypotheses."""
        model, tokens_BT = self._reader.model, inputs["input_ids"]
        if supports_shared_prefix(model.config) and hasattr(model, "score"):
            lengths_B = inputs["attention_mask"].sum(1).tolist()
            rows = [row[:length] for row, length in zip(tokens_BT.tolist(), lengths_B, strict=True)]
            hidden = model.config.hidden_size
            body, score = cast(Any, model.base_model), cast(Any, model).score
            shared = pack_shared_prefixes(
                last_token_layouts(rows), tokens_BT.shape[1], hidden=hidden, device=tokens_BT.device
            )
            if shared is not None:
                return cast(Tensor, score(shared.states(body, tokens_BT)))
            # Not by the model's own rule, the last token that is no padding: an end token may double as padding.
            states_BTH = body(**inputs, use_cache=False).last_hidden_state
            ends_B = inputs["attention_mask"].sum(1) - 1
            return cast(Tensor, score(states_BTH[torch.arange(len(ends_B), device=ends_B.device), ends_B]))
        return cast(Tensor, model(**inputs).logits)

    def _of_seq2seq(self, inputs: dict[str, Tensor]) -> Tensor:
        start = self._reader.model.config.decoder_start_token_id
        start_B1 = torch.full_like(inputs["input_ids"][:, :1], start)
        return _first_of(self._reader.model(**inputs, decoder_input_ids=start_B1).logits[:, 0, self._answers])


class RewardModel:
    """A reward model's one logit for the completion behind its prompt: any number, or in [0, 1] by a sigmoid.

    Exploited by length, flattery, a confident tone, and texts far from those that it learnt from: keep the policy near
    them (a teacher, alpha above 0) and read its samples. An empty completion gets what the model gives it.
    """

    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokens | None = None,
        template: str = "{prompt} {completion}",
        sigmoid: bool = False,
        batch_size: int = 64,
        device: str = "auto",
        max_tokens: int | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: A path, a hub name or a loaded model: a sequence classifier with one output.
            tokenizer: As of `Entailment`.
            template: A text with `{completion}` and any of `{prompt}`, `{reference}` and the data's columns, which may
                end with the end token; or `chat`: the tokenizer's chat template, with the prompt as the user's message
                and the completion as the answer; or `pair`: as the tokenizer joins prompt and completion.
            sigmoid: Whether to give the logit's sigmoid.
            batch_size: As of `Entailment`.
            device: As of `Entailment`.
            max_tokens: Length limit of prompt and completion, by default the model's. Beyond it the sample has failed.

        Raises: ModelError, SettingError.
        """
        outputs = _config(model).num_labels
        if outputs != 1:
            raise ModelError("model", _kind(model), f"a reward model has one output, not {outputs}; see Entailment")
        _check_loaded(model, CLASSIFIER)
        self._reader = RowReader(
            model, tokenizer, AutoModelForSequenceClassification,
            batch_size=batch_size, device=device, max_tokens=max_tokens,
        )  # fmt: skip
        tokens = self._reader.tokenizer
        if template == "chat":
            messages = ("user", Template("{prompt}", ())), ("assistant", Template("{completion}"))
            self._form = chat_form(tokens, *messages)
        elif template == "pair":
            self._form = pair_form(tokens, "prompt", "completion")
        else:
            self._form = text_form(tokens, Template(template))
        self._sigmoid = sigmoid
        self.__signature__ = takes(*columns_of(self._form.fields))

    def __call__(self, *columns: Sequence[str], **named: Sequence[str]) -> list[float | Exception]:
        """One number for each completion, or why it has none."""
        rows = self._form.rows(self.__signature__.bind(*columns, **named).arguments)
        return self._reader.read(rows, self._value)

    def _value(self, inputs: dict[str, Tensor]) -> Tensor:
        value_B = cast(Tensor, self._reader.model(**inputs).logits)[:, 0].float()
        return value_B.sigmoid() if self._sigmoid else value_B


class CausalJudge:
    """Probability of `yes` against `no` as a causal model's next token behind a question about the completion.

    In [0, 1]. Exploited by completions that talk to the judge ("say yes"), and by the model's bias for length, tone and
    its own style; a small model's verdict is mostly bias. Compare it with labels before training on it.
    """

    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokens | None = None,
        template: str = JUDGED,
        chat: bool = False,
        yes: str = " yes",
        no: str = " no",
        batch_size: int = 16,
        device: str = "auto",
        max_tokens: int | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: A path, a hub name, `smollm2-135m` or a loaded causal language model.
            tokenizer: As of `Entailment`.
            template: The question: a text with `{completion}` and any of `{prompt}`, `{reference}` and the data's
                columns.
            chat: Whether to put it as a user's message, by the tokenizer's chat template.
            yes: The good answer; its first token counts. Behind a chat template mostly `Yes`, without the space.
            no: The bad one, which begins with another token.
            batch_size: Questions in a forward pass.
            device: As of `Entailment`.
            max_tokens: Length limit of a question, by default the model's. Beyond it the sample has failed.

        Raises: ModelError, SettingError.
        """
        _check_loaded(model, "ForCausalLM", "LMHeadModel")
        self._reader = RowReader(
            model, tokenizer, AutoModelForCausalLM, batch_size=batch_size, device=device, max_tokens=max_tokens
        )  # fmt: skip
        tokens, question = self._reader.tokenizer, Template(template)
        self._form = chat_form(tokens, ("user", question)) if chat else text_form(tokens, question)
        self._answers = first_tokens(tokens, yes, no)
        self.__signature__ = takes(*columns_of(self._form.fields))

    def __call__(self, *columns: Sequence[str], **named: Sequence[str]) -> list[float | Exception]:
        """One probability for each completion, or why it has none."""
        rows = self._form.rows(self.__signature__.bind(*columns, **named).arguments)
        return self._reader.read(rows, self._value)

    def _value(self, inputs: dict[str, Tensor]) -> Tensor:
        # The head at the rows' last tokens alone: right padding changes nothing before it.
        ends_B = inputs["attention_mask"].sum(1) - 1
        kept, place_B = ends_B.unique(return_inverse=True)
        logits = self._reader.model(**inputs, logits_to_keep=kept, use_cache=False).logits
        return _first_of(logits[torch.arange(len(ends_B), device=ends_B.device), place_B][:, self._answers])


def _first_of(logits_B2: Tensor) -> Tensor:
    """[B, 2] -> [B]: the probability of the first against the second."""
    return logits_B2.float().softmax(-1)[:, 0]


def _config(model: Model) -> PreTrainedConfig:
    return model.config if isinstance(model, PreTrainedModel) else load_config(model)


def _kind(model: Model) -> str:
    """The name of the model's class, as far as its configuration tells."""
    if isinstance(model, PreTrainedModel):
        return type(model).__name__
    return next(iter(load_config(model).architectures or ()), "")


def _check_loaded(model: Model, *endings: str) -> None:
    """Refuse a loaded model of another class; one that is opened by name then lacks weights, which `load` tells.

    Raises: ModelError.
    """
    if isinstance(model, PreTrainedModel) and not _kind(model).endswith(endings):
        raise ModelError("model", _kind(model), f"give one whose class ends with {' or '.join(endings)}")


def _entailment(config: PreTrainedConfig, asked: str | int | None) -> int:
    """The number of the label that says that the premise entails the hypothesis.

    Raises: SettingError where no label, or more than one, is called so.
    """
    labels = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    wanted = "entailment" if asked is None else asked
    found = [n for n, name in labels.items() if wanted == n or str(wanted).casefold() == name.strip().casefold()]
    if len(found) != 1 or len(labels) < 2:
        there = ", ".join(labels.values())
        raise SettingError(
            "entailment_label", wanted, f"name the one that means it of this classifier's labels: {there}"
        )
    return found[0]
