"""A language model as the actor and critic of stock Stable-Baselines3, for its PPO and A2C.

    PPO(LanguageModelActorCritic, make_sb3_vec_env(...), policy_kwargs={"model": "embedded:grounded-student"})

Observations are token ids padded on the right with -1, actions tokens. The actor is the model's tempered distribution
of the next token over the tokenizer's vocabulary, the critic a linear head on the same state, which begins at 0.
Sampling goes on from a KV cache; an update reads the prefixes of a text in one pass, so its minibatches are best as
large as the rollout (`batch_size=n_steps * num_envs`). Dropout is off throughout.

Left out: encoder-decoder models, since an observation does not tell its prompt.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.encoder_decoder import EncoderDecoderModel, language_model
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.prefix_cache import PrefixCache, last_states
from rlgkd.ops.token_masks import TokenMask, allowed_tokens, masked


class LanguageModelActorCritic(ActorCriticPolicy):
    """The policy class; what it takes besides SB3's own arguments goes into `policy_kwargs`."""

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        model: str | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        temperature: float = 1.0,
        mask: TokenMask | None = None,
        **settings: Any,
    ) -> None:
        """Open the model and make the optimizer.

        Args:
            observation_space: A text environment's.
            action_space: The same environment's.
            lr_schedule: SB3's.
            use_sde: SB3's; there is none for tokens.
            model: A name, or a loaded model, which is trained in place; it is needed.
            tokenizer: A loaded model's; it must be the environment's.
            temperature: The actor's, in sampling and scoring alike.
            mask: Which tokens may come next, see rlgkd.ops.token_masks; None allows all.
            **settings: SB3's `optimizer_class` and `optimizer_kwargs`.

        Raises: SettingError for no model, a loaded one without tokenizer, or spaces of another kind; ModelError for a
            model that is missing, damaged, wholly frozen, or does not fit the spaces.
        """
        if model is None:
            raise SettingError("model", None, 'name it: policy_kwargs={"model": "embedded:grounded-student"}')
        super().__init__(observation_space, action_space, lr_schedule, use_sde=use_sde, **settings)
        self._given = {"model": model, "tokenizer": tokenizer, "temperature": temperature, "mask": mask}
        tokens, actions = observation_space, action_space
        if not (isinstance(tokens, gym.spaces.Box) and tokens.dtype == np.int64 and len(tokens.shape) == 1):
            raise SettingError("observation_space", str(tokens), "give a text environment, whose rows are token ids")
        if isinstance(model, str):
            tokenizer, model = tokenizer or load_tokenizer(model), load(model)
        elif tokenizer is None:
            raise SettingError("tokenizer", None, "give the loaded model's, which must be the environment's too")
        name = model.config.name_or_path
        if not any(p.requires_grad for p in model.parameters()):
            raise ModelError("model", name, "all its parameters are frozen; let some require a gradient")
        self.language_model = language_model(model, tokenizer, temperature=temperature)
        if isinstance(self.language_model, EncoderDecoderModel):
            raise ModelError("model", model.config.model_type, "an observation tells no prompt; give a causal model")
        size = int(actions.n) if isinstance(actions, gym.spaces.Discrete) else None
        if size != self.language_model.vocabulary:
            raise ModelError(
                "model", name, f"its tokenizer has {self.language_model.vocabulary} tokens, the environment {size}"
            )
        if self.language_model.context < tokens.shape[0]:
            raise ModelError(
                "model",
                name,
                f"its context of {self.language_model.context} tokens is shorter than the environment's "
                f"{tokens.shape[0]}; lower max_prompt_tokens or max_new_tokens",
            )
        self.module, self.mask, self.reader = model, mask, PrefixCache(self.language_model)
        self.value_net = nn.Linear(self.language_model.head.in_features, 1, device=self.language_model.device)
        nn.init.zeros_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        learnt = [p for p in self.parameters() if p.requires_grad]
        optimizer: Any = self.optimizer_class
        self.optimizer = optimizer(learnt, lr=lr_schedule(1.0), **self.optimizer_kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Nothing of SB3's own networks."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._given

    def set_training_mode(self, mode: bool) -> None:
        """Keep dropout off, and clear the KV cache: SB3 sets the mode before each update, which changes the weights."""
        super().set_training_mode(False)
        if mode:
            self.reader.clear()

    def load_state_dict(self, *arguments: Any, **settings: Any) -> Any:
        """As torch has it."""
        self.reader.clear()
        return super().load_state_dict(*arguments, **settings)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Sample: tokens [B], values [B, 1], log-probabilities [B] in nats."""
        states_BH = self.reader.last_states(obs)
        distribution = self._distribution(states_BH, obs)
        actions_B = distribution.get_actions(deterministic=deterministic)
        return actions_B, self._value(states_BH), distribution.log_prob(actions_B)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, 1], log-probabilities [B] and entropies [B], in nats, with their gradients."""
        assert isinstance(obs, Tensor)
        states_BH = last_states(self.language_model, obs)
        distribution = self._distribution(states_BH, obs, actions)
        entropy_B = distribution.entropy()
        assert entropy_B is not None
        return self._value(states_BH), distribution.log_prob(actions), entropy_B

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The distribution of the next token."""
        assert isinstance(obs, Tensor)
        return self._distribution(self.reader.last_states(obs), obs)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """[B, 1]."""
        assert isinstance(obs, Tensor)
        # Not from the reader: SB3 asks this of single rows between two steps of all of them.
        return self._value(last_states(self.language_model, obs))

    def _distribution(self, states_BH: Tensor, obs: Tensor, actions: Tensor | None = None) -> CategoricalDistribution:
        logits_BV = self.language_model.logits(states_BH)
        if self.mask is not None:
            allowed_BV = allowed_tokens(self.mask, obs, self.language_model.vocabulary)
            if actions is not None:
                # What was sampled was allowed; a mask by a model may differ at its edge by rounding, and its logarithm
                # would then be -inf.
                allowed_BV = allowed_BV.scatter(1, actions.long()[:, None], True)
            logits_BV = masked(logits_BV, allowed_BV)
        return CategoricalDistribution(self.language_model.vocabulary).proba_distribution(logits_BV)

    def _value(self, states_BH: Tensor) -> Tensor:
        values_B1: Tensor = self.value_net(states_BH.to(self.value_net.weight.dtype))
        return values_B1
