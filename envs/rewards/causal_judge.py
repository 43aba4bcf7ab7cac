"""A local language model's yes or no as a reward. Public in rlgkd.envs.rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlgkd.envs.rewards.arguments import signature_of
from rlgkd.envs.rewards.batched_model import BatchedModel, Model, Tokenizer, check_class, first_probability
from rlgkd.envs.rewards.prompts import Template, argument_names, chat_encoder, first_tokens, text_encoder

QUESTION = "Question: {prompt}\nAnswer: {completion}\nIs the answer right and complete? Say yes or no:"


class CausalJudge:
    """Probability of `yes` against `no` as a causal model's next token after a question about the completion.

    In [0, 1]. Exploited by completions that talk to the judge ("say yes"), and by the model's bias for length, tone and
    its own style; a small model's verdict is mostly bias. Compare it with labels before training on it.
    """

    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokenizer | None = None,
        template: str = QUESTION,
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
            tokenizer: By default the one in the model's folder; a loaded model needs it.
            template: The question: a text with `{completion}` and any of `{prompt}`, `{reference}` and the data's
                columns.
            chat: Whether to ask it as a user's message, by the tokenizer's chat template.
            yes: The good answer; its first token counts. After a chat template mostly `Yes`, without the space.
            no: The bad answer, which begins with another token.
            batch_size: Questions in a forward pass.
            device: `auto` is the accelerator, if there is one; a loaded model then stays where it is.
            max_tokens: Length limit of a question, by default the model's. Beyond it the sample has failed.

        Raises: ModelError, SettingError.
        """
        check_class(model, "ForCausalLM", "LMHeadModel")
        self._model = BatchedModel(
            model, tokenizer, AutoModelForCausalLM, batch_size=batch_size, device=device, max_tokens=max_tokens
        )
        tokens = self._model.tokenizer
        question = Template(template)
        plain = text_encoder(tokens, question, continued=True)
        self._encoder = chat_encoder(tokens, ("user", question)) if chat else plain
        self._answers = first_tokens(tokens, yes, no)
        self.__signature__ = signature_of(argument_names(self._encoder.fields))

    def __call__(self, *columns: Sequence[str], **named: Sequence[str]) -> list[float | Exception]:
        """Return a probability for each completion, or why it has none."""
        arguments = self.__signature__.bind(*columns, **named).arguments
        return self._model.values(self._encoder.encode_batch(arguments), self._probability)

    def _probability(self, inputs: dict[str, Tensor]) -> Tensor:
        # The head runs at the last tokens of the rows only; padding on the right changes nothing before it.
        ends_B = inputs["attention_mask"].sum(1) - 1
        kept, column_B = ends_B.unique(return_inverse=True)
        logits = self._model.module(**inputs, logits_to_keep=kept, use_cache=False).logits
        last_BV = logits[torch.arange(len(ends_B), device=ends_B.device), column_B]
        return first_probability(last_BV[:, self._answers])
