"""A model in this process, asked as an outside teacher is: to write what it says into a file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from rlgkd.lm.model import LanguageModel
from rlgkd.lm.own_format import as_read_by
from rlgkd.teachers.known_text import LOWEST, KnownText
from rlgkd.teachers.outside import Answer
from rlgkd.types import Batch, Episode


class ModuleTeacher:
    """An `OutsideTeacher` that is a model in this process: every answer is there at once."""

    takes_any_text = True

    def __init__(self, lm: LanguageModel, top_k: int, name: str) -> None:
        self.lm, self.top_k, self.name = lm, min(top_k, lm.vocabulary), name

    @torch.inference_mode()
    def submit(self, episodes: Sequence[Episode]) -> list[Answer]:
        """Run the model over the texts, in its own format if it has one."""
        if not episodes:
            return []
        batch = Batch.collate(as_read_by(self.lm, episodes), pad=self.lm.pad, device=self.lm.device)
        token_N, states_NH = self.lm.actions(batch), self.lm.states(batch)
        answers: list[Answer] = []
        start = 0
        for episode in episodes:
            rows = slice(start, start + episode.length)
            logp_LV = self.lm.logits(states_NH[rows]).log_softmax(-1).clamp(min=LOWEST)
            answer: Answer = Future()
            answer.set_result(_known(logp_LV, token_N[rows], self.top_k))
            answers.append(answer)
            start += episode.length
        return answers

    def resolve(self) -> None:
        """Nothing is pending."""

    def cancel(self) -> None:
        """Nothing is pending."""


def _known(logp_LV: torch.Tensor, token_L: torch.Tensor, k: int) -> KnownText:
    logp_LK, ids_LK = logp_LV.topk(k, dim=-1)
    rest_L = logp_LV.scatter(-1, ids_LK, -torch.inf).logsumexp(-1).clamp(min=LOWEST)
    token_logp_L = logp_LV.gather(-1, token_L[:, None])[:, 0]
    return KnownText(
        logp_LK=logp_LK.float().cpu().numpy(),
        ids_LK=ids_LK.cpu().numpy(),
        rest_L=rest_L.float().cpu().numpy(),
        token_logp_L=token_logp_L.float().cpu().numpy(),
    )
