"""A fixed text, scored by the student and by a server: whether the server samples with the student's weights.

A server may take weights and go on with old ones: embeddings that are tied leave the head as it was on some, a cache
keeps what old weights have computed, a reload misses a tensor. So nothing that a server says of its weights counts,
only the log-probabilities that it gives. At the start it gets weights that are perturbed in every tensor, and must
follow them: where the student has not moved, an old copy looks like the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rlgkd.lm.lora import merged_state_dict
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.policy_loss import log_probability
from rlgkd.ops.sampling import uniforms
from rlgkd.samplers.vllm import Ends, Wanted, completions, request
from rlgkd.sharding import state_dict
from rlgkd.teachers import vllm as scoring
from rlgkd.types import Batch, Episode, Item, Source, StopReason
from rlgkd.vllm_server import VllmServer

TOKENS = 48
"""Length of the fixed text."""
SAMPLED = 8
"""Tokens that the server samples after it, if texts are long enough."""
EXACT = 1e-3
"""Mean difference, in nats a token, within which both sides agree in float32; 1e-5 is usual."""
SIXTEEN_BITS = 0.15
"""The same where a side has 16 bits: 0.03 to 0.05 is usual."""
PERTURBATIONS = (0.05, 0.2, 0.8)
"""How far weights are moved, as a share of each tensor's root mean square; the first that moves the text enough."""
CLEAR = 10.0
"""A push that moves the text by this many tolerances shows whether a server has taken it."""


class Canary:
    """The fixed text of a student, and what it is known to be."""

    def __init__(self, student: LanguageModel, longest: int) -> None:
        """Draw a text of at most `longest` tokens, those that are sampled after it included."""
        self.more = max(1, min(SAMPLED, longest // 2))
        drawn = uniforms(0, "canary", 0, max(2, min(TOKENS, longest - self.more))) * student.vocabulary
        self.student, self.ids = student, [int(id_) for id_ in drawn]

    @torch.no_grad()
    def of_student(self, more: Sequence[int] = ()) -> np.ndarray:
        """[T - 1], the log-probabilities of its tokens after the first in nats, at temperature 1.

        With tokens `more` after it, those of these alone, at the policy's temperature.
        """
        tokens_T = np.array([*self.ids, *more], dtype=np.int64)
        actions_T = np.arange(len(tokens_T)) >= (len(self.ids) if len(more) else 1)
        zeros_T = np.zeros(len(tokens_T), dtype=np.float32)
        episode = Episode(
            item=Item(key="canary", prompt=""),
            tokens_T=tokens_T,
            action_mask_T=actions_T,
            logp_T=zeros_T,
            entropy_T=zeros_T,
            stop=StopReason.LENGTH,
            source=Source.DATA,
            sample=0,
            text="",
        )
        lm = self.student
        batch = Batch.collate([episode], pad=lm.pad, device=lm.device)
        logits_NV = lm.logits(lm.states(batch))
        if not len(more):
            logits_NV = logits_NV * lm.temperature
        logp_N: np.ndarray = log_probability(logits_NV, lm.actions(batch)).cpu().numpy()
        return logp_N

    def of_server(self, server: VllmServer) -> np.ndarray:
        """What a server gives for the same text.

        Raises: ModelError if it does not answer, or not wholly.
        """
        answer = server.ask("/v1/completions", scoring.request(server.model, self.ids, 0))
        columns = list(range(1, len(self.ids)))
        try:
            known = scoring.known_text(
                answer, self.ids, columns, model=server.model, k=0, vocabulary=self.student.vocabulary
            )
        except ValueError as error:
            raise server.error(f"{error}; give a vLLM server") from error
        return known.token_logp_L

    def sampled_difference(self, server: VllmServer) -> float:
        """Mean difference, in nats a token, between both sides over tokens that the server samples after the text.

        What it has cached of the text plays a part here, and its temperature.

        Raises: ModelError as `of_server`.
        """
        temperature = self.student.temperature
        wanted = Wanted(prompt=self.ids, number=1, limit=self.more, seed=0)
        answer = server.ask("/v1/completions", request(server.model, wanted, Ends(), temperature=temperature))
        try:
            (found,) = completions(answer, wanted, Ends(), model=server.model, vocabulary=self.student.vocabulary)
        except ValueError as error:
            raise server.error(f"{error}; give a vLLM server") from error
        return difference(self.of_student(found.ids), np.array(found.logp))


def difference(one_T: np.ndarray, other_T: np.ndarray) -> float:
    """Mean absolute difference of log-probabilities, in nats a token."""
    return float(np.abs(one_T - other_T).mean())


def weights_of(student: LanguageModel) -> dict[str, Tensor]:
    """Every weight by its name in a saved model, adapters merged; a tied head has an entry of its own."""
    state = merged_state_dict(student.module)
    state = state_dict(student.module) if state is None else state
    return {name: tensor.detach() for name, tensor in state.items()}


@contextmanager
def perturbed(student: LanguageModel, scale: float) -> Iterator[None]:
    """Move every parameter by noise, and back to the bit; takes the memory of a second copy meanwhile.

    Args:
        student: The model.
        scale: The noise's deviation, as a share of each tensor's root mean square.
    """
    parameters: Mapping[str, Tensor] = dict(student.module.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in parameters.values():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise, alpha=scale * float(parameter.float().square().mean().sqrt()))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
