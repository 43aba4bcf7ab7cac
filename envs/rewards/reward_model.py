"""A reward model's output as a reward. Public in rlgkd.envs.rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlgkd.envs.rewards.arguments import signature_of
from rlgkd.envs.rewards.batched_model import (
    CLASSIFIER,
    BatchedModel,
    Model,
    Tokenizer,
    check_class,
    class_name,
    config_of,
)
from rlgkd.envs.rewards.prompts import Template, argument_names, chat_encoder, pair_encoder, text_encoder
from rlgkd.errors import ModelError, SettingError
from rlgkd.settings import checked_arguments


class RewardModel:
    """A reward model's one logit for a prompt and its completion: any number, or in [0, 1] by a sigmoid.

    Exploited by length, flattery, a confident tone, and texts far from those that it was trained on: keep the policy
    near them (a teacher, alpha above 0) and read its samples. An empty completion gets what the model gives it.
    """

    @checked_arguments
    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokenizer | None = None,
        template: str = "{prompt} {completion}",
        sigmoid: bool = False,
        batch_size: int = 64,
        device: str = "auto",
        max_tokens: int | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: A path, a hub name or a loaded model: a sequence classifier with one output.
            tokenizer: By default the one in the model's folder; a loaded model needs it.
            template: A text with `{completion}` and any of `{prompt}`, `{reference}` and the data's columns, which may
                end with the end token; or `chat`: the tokenizer's chat template, with the prompt as the user's message
                and the completion as the answer; or `pair`: as the tokenizer joins prompt and completion.
            sigmoid: Whether to give the logit's sigmoid.
            batch_size: Samples in a forward pass.
            device: `auto` is the accelerator, if there is one; a loaded model then stays where it is.
            max_tokens: Length limit of prompt and completion, by default the model's. Beyond it the sample has failed.

        Raises: ModelError, SettingError.
        """
        outputs = config_of(model).num_labels
        if outputs != 1:
            raise ModelError(
                "model", class_name(model), f"a reward model has one output, not {outputs}; see Entailment"
            )
        check_class(model, CLASSIFIER)
        self._model = BatchedModel(
            model,
            tokenizer,
            AutoModelForSequenceClassification,
            batch_size=batch_size,
            device=device,
            max_tokens=max_tokens,
        )
        tokens = self._model.tokenizer
        if template == "chat":
            messages = ("user", Template("{prompt}", ())), ("assistant", Template("{completion}"))
            try:
                self._encoder = chat_encoder(tokens, *messages)
            except SettingError as error:
                remedy = error.remedy.replace("set chat to false", "give a template of your own, or pair")
                raise SettingError("template", template, remedy) from error
        elif template == "pair":
            self._encoder = pair_encoder(tokens, "prompt", "completion")
        else:
            self._encoder = text_encoder(tokens, Template(template))
        self._sigmoid = sigmoid
        self.__signature__ = signature_of(argument_names(self._encoder.fields))

    def __call__(self, *columns: Sequence[str], **named: Sequence[str]) -> list[float | Exception]:
        """Return a number for each completion, or why it has none."""
        arguments = self.__signature__.bind(*columns, **named).arguments
        return self._model.values(self._encoder.encode_batch(arguments), self._value)

    def _value(self, inputs: dict[str, Tensor]) -> Tensor:
        value_B = cast(Tensor, self._model.module(**inputs).logits)[:, 0].float()
        return value_B.sigmoid() if self._sigmoid else value_B
