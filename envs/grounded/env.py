"""rlgkd/GroundedSummary-v0: one sentence about a passage's main event, rewarded for being entailed by the passage.

The reward is the probability that a small learned classifier gives to entailment: it can be exploited. Beside it,
seen by evaluation alone: the exact oracle's verdict and ROUGE-2 against the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rlgkd.envs.grounded.oracle import judge
from rlgkd.envs.grounded.world import SPLITS, story
from rlgkd.envs.rewards import rouge
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.types import Item

TOKENIZER = "embedded:grounded-teacher"
CLASSIFIER = "embedded:grounded-nli"
MAX_PROMPT_TOKENS = 144
MAX_NEW_TOKENS = 32


def prompt_of(passage: str) -> str:
    """The prompt's text; completions follow behind a space."""
    return f" {passage}\nSummary:"


class GroundedItems:
    """Stories without end; a split's seed and names are its own."""

    def size(self, split: str) -> int:
        """As good as endless.

        Raises: SettingError for an unknown split.
        """
        if split not in SPLITS:
            raise SettingError("split", split, f"choose one of {', '.join(SPLITS)}")
        return 2**31

    def item(self, split: str, seed: int, index: int) -> Item:
        """The story at this index."""
        told = story(split, seed, index)
        return Item(
            key=f"{split}/{seed}/{index}",
            prompt=prompt_of(told.passage),
            reference=told.reference,
            columns={"passage": told.passage, "events": told.events},
        )


def grounded_summary(
    *, max_new_tokens: int = MAX_NEW_TOKENS, max_prompt_tokens: int = MAX_PROMPT_TOKENS, device: str = "cpu"
) -> TextTask:
    """The task behind `rlgkd/GroundedSummary-v0`; the classifier runs on `device`."""
    return TextTask(
        name="GroundedSummary",
        prompts=GroundedItems(),
        reward=Entailment(CLASSIFIER, device=device),
        tokenizer=TOKENIZER,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        quality=quality,
    )


class Entailment:
    """Probability of entailment, in [0, 1], by a sequence classifier; opened at the first call."""

    def __init__(self, classifier: str, *, device: str = "cpu") -> None:
        """Name the classifier; its label `entailment` is looked up when it is opened."""
        self.classifier, self.device = classifier, device
        self._score: Callable[[Sequence[str], Sequence[str]], list[float]] | None = None

    def __call__(self, passage: Sequence[str], completions: Sequence[str]) -> list[float]:
        """One probability for each pair of passage and completion."""
        if self._score is None:
            self._score = self._open()
        return self._score(passage, completions)

    def _open(self) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
        model = load(self.classifier, device=self.device, auto_class=AutoModelForSequenceClassification)
        tokenizer = load_tokenizer(self.classifier)
        label = {name.lower(): index for index, name in (model.config.id2label or {}).items()}["entailment"]

        @torch.inference_mode()
        def score(premises: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
            ids, mask = encode_pairs(tokenizer, premises, hypotheses)
            logits = model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
            return [float(p) for p in logits.float().softmax(-1)[:, label].tolist()]

        return score


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, premises: Sequence[str], hypotheses: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] ids and mask of premise, hypothesis, end token, right-padded; a hypothesis too long is judged as cut."""
    texts = [f"{prompt_of(p)} {h}" for p, h in zip(premises, hypotheses, strict=True)]
    rows = [[*ids[:255], tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    return ids, mask


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`truth`, `parsable` (0 or 1), `coverage` of the main event's facts and `rouge2`, each in [0, 1]."""
    overlaps = rouge("rouge2")(completions, [item.reference for item in items])
    measures = []
    for item, completion, overlap in zip(items, completions, overlaps, strict=True):
        verdict = judge(completion, item.columns["events"])  # type: ignore[arg-type]
        measures.append({
            "truth": float(verdict.true), "parsable": float(verdict.parsable),
            "coverage": verdict.coverage, "rouge2": overlap,
        })  # fmt: skip
    return measures
