"""Entailment as a reward, by a sequence classifier or a seq2seq model. Public in rlgkd.envs.rewards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedConfig

from rlgkd.envs.rewards.arguments import signature_of
from rlgkd.envs.rewards.batched_model import (
    CLASSIFIER,
    BatchedModel,
    Model,
    Tokenizer,
    check_class,
    class_name,
    config_of,
    first_probability,
)
from rlgkd.envs.rewards.prompts import (
    ModelInput,
    Template,
    argument_names,
    first_answer,
    first_tokens,
    pair_encoder,
    text_encoder,
)
from rlgkd.errors import SettingError
from rlgkd.lm.shared_prefix import last_token_layouts, pack_shared_prefixes, supports_shared_prefix
from rlgkd.settings import checked_arguments

SEQ2SEQ_TEMPLATE = "premise: {premise} hypothesis: {hypothesis}"
"""The input of the TRUE models, which answer 1 or 0 (Honovich et al., 2022, arXiv:2204.04991)."""


class Entailment:
    """Probability that a premise entails a hypothesis, in [0, 1], by a classifier or a T5-style model.

    A pair that is too long loses the end of its premise; if the hypothesis alone is too long, the sample has failed.

    Exploited by hypotheses that say little or copy the premise, and by texts unlike the model's training data. An empty
    hypothesis earns 0.
    """

    @checked_arguments
    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokenizer | None = None,
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
            tokenizer: By default the one in the model's folder; a loaded model needs it.
            batch_size: Pairs in a forward pass.
            device: `auto` is the accelerator, if there is one; a loaded model then stays where it is.
            max_tokens: Length limit of a pair, by default the model's. Beyond it the premise loses its end.
            premise: Which of `prompts`, `references`, `completions` and the data's columns are premises.
            hypothesis: Which of them are hypotheses.
            template: A text with `{premise}` and `{hypothesis}`, for a model that was trained on such a text; it may
                end with the end token. By default the `pair_template` of the model's configuration; without one, a
                seq2seq model gets `SEQ2SEQ_TEMPLATE`, and for a classifier the tokenizer joins the pair.
            entailment_label: Name or number of the classifier's label, if none is called `entailment`.

        Raises: ModelError, SettingError.
        """
        config = config_of(model)
        classifies = class_name(model).endswith(CLASSIFIER) or not config.is_encoder_decoder
        auto_class = AutoModelForSequenceClassification if classifies else AutoModelForSeq2SeqLM
        if classifies:
            check_class(model, CLASSIFIER)
            self._label = _entailment_label(config, entailment_label)
        self._model = BatchedModel(
            model, tokenizer, auto_class, batch_size=batch_size, device=device, max_tokens=max_tokens
        )
        tokens = self._model.tokenizer
        template = template or getattr(config, "pair_template", None) or (None if classifies else SEQ2SEQ_TEMPLATE)
        self._encoder = (
            text_encoder(tokens, Template(template, ("premise", "hypothesis")))
            if template
            else pair_encoder(tokens, "premise", "hypothesis")
        )
        self._probability = self._classifier_probability if classifies else self._seq2seq_probability
        if not classifies:
            self._answers = first_tokens(tokens, "1", "0")
        self._names = argument_names((premise, hypothesis))
        self.__signature__ = signature_of(self._names)

    def __call__(self, *columns: Sequence[str], **named: Sequence[str]) -> list[float | Exception]:
        """Return a probability for each pair, or why it has none."""
        arguments = self.__signature__.bind(*columns, **named).arguments
        premises, hypotheses = ([first_answer(text) for text in arguments[name]] for name in self._names)
        values: list[float | Exception] = [0.0] * len(hypotheses)
        filled = [number for number, hypothesis in enumerate(hypotheses) if hypothesis.strip()]
        rows = [self._fitting_pair(premises[number], hypotheses[number]) for number in filled]
        for number, value in zip(filled, self._model.values(rows, self._probability), strict=True):
            values[number] = value
        return values

    def _fitting_pair(self, premise: str, hypothesis: str) -> ModelInput:
        """The pair, with as much of the premise as fits; still too long if the hypothesis alone does not fit."""

        def length(kept: int) -> int:
            return len(self._encoder.encode(premise=premise[:kept], hypothesis=hypothesis)["input_ids"])

        whole = self._encoder.encode(premise=premise, hypothesis=hypothesis)
        if len(whole["input_ids"]) <= self._model.max_length:
            return whole
        # The pair grows with the premise, so that a bisection finds how many characters fit.
        kept = bisect_right(range(len(premise)), self._model.max_length, key=length) - 1
        return self._encoder.encode(premise=premise[: max(kept, 0)], hypothesis=hypothesis)

    def _classifier_probability(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._classifier_logits(inputs).float().softmax(-1)[:, self._label]

    def _classifier_logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, labels]; a causal classifier runs over a premise once for all its hypotheses."""
        module = self._model.module
        tokens_BT = inputs["input_ids"]
        if not (supports_shared_prefix(module.config) and hasattr(module, "score")):
            return cast(Tensor, module(**inputs).logits)
        body, score = cast(Any, module.base_model), cast(Any, module).score
        lengths_B = inputs["attention_mask"].sum(1).tolist()
        rows = [row[:length] for row, length in zip(tokens_BT.tolist(), lengths_B, strict=True)]
        hidden = module.config.hidden_size
        shared = pack_shared_prefixes(
            last_token_layouts(rows), tokens_BT.shape[1], hidden=hidden, device=tokens_BT.device
        )
        if shared is not None:
            return cast(Tensor, score(shared.states(body, tokens_BT)))
        # The model's own forward takes the last token that is not the padding token, which is wrong where the end
        # token doubles as padding.
        states_BTH = body(**inputs, use_cache=False).last_hidden_state
        ends_B = inputs["attention_mask"].sum(1) - 1
        return cast(Tensor, score(states_BTH[torch.arange(len(ends_B), device=ends_B.device), ends_B]))

    def _seq2seq_probability(self, inputs: dict[str, Tensor]) -> Tensor:
        start = self._model.module.config.decoder_start_token_id
        start_B1 = torch.full_like(inputs["input_ids"][:, :1], start)
        logits_BTV = self._model.module(**inputs, decoder_input_ids=start_B1).logits
        return first_probability(logits_BTV[:, 0, self._answers])


def _entailment_label(config: PreTrainedConfig, asked: str | int | None) -> int:
    """The number of the label that says that the premise entails the hypothesis.

    Raises: SettingError if no label, or more than one, has that name.
    """
    labels = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    wanted = "entailment" if asked is None else asked
    found = [n for n, name in labels.items() if wanted == n or str(wanted).casefold() == name.strip().casefold()]
    if len(found) != 1 or len(labels) < 2:
        known = ", ".join(labels.values())
        raise SettingError(
            "entailment_label", wanted, f"name the one that means it of this classifier's labels: {known}"
        )
    return found[0]
