"""rlgkd/GroundedSummary-v0: one sentence about a passage's main event, rewarded for being entailed by the passage.

The reward is the probability that a small learned classifier gives to entailment: it can be exploited. Beside it,
seen by evaluation alone: the exact oracle's verdict and ROUGE-2 against the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from rlgkd.envs.rewards import rouge
from rlgkd.envs.rewards.models import Entailment
from rlgkd.envs.task import TextTask
from rlgkd.envs.tasks.grounded.oracle import judge
from rlgkd.envs.tasks.grounded.world import SPLITS, story
from rlgkd.errors import SettingError
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
    """One sentence about a short passage of news; the reward is that a learned classifier finds it entailed."""

    def entailment(passage: Sequence[str], completions: Sequence[str]) -> list[float | Exception]:
        return classifier(device)(passage, completions)

    return TextTask(
        name="GroundedSummary",
        prompts=GroundedItems(),
        reward=entailment,
        tokenizer=TOKENIZER,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        quality=quality,
    )


@cache
def classifier(device: str = "cpu") -> Entailment:
    """The embedded classifier, opened once and when it is first needed."""
    return Entailment(CLASSIFIER, premise="passage", device=device)


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
