"""rlgkd/GroundedSummary-v0: one sentence about a passage's main event, rewarded for being entailed by the passage.

The reward is the probability that a small learned classifier gives to entailment: it can be exploited. Evaluation also
has the exact oracle's verdict and ROUGE-2 against the reference, which training never sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from rlgkd.envs.rewards import Entailment, rouge
from rlgkd.envs.task import TextTask
from rlgkd.envs.tasks.grounded.oracle import judge
from rlgkd.envs.tasks.grounded.world import SPLITS, story
from rlgkd.errors import SettingError
from rlgkd.settings import checked_arguments
from rlgkd.types import Item

TOKENIZER = "embedded:grounded-teacher"
CLASSIFIER = "embedded:grounded-nli"
MAX_PROMPT_TOKENS = 144
MAX_NEW_TOKENS = 32


def prompt_of(passage: str) -> str:
    """Return the prompt's text; a completion follows it after a space."""
    return f" {passage}\nSummary:"


class GroundedItems:
    """An endless source of stories; each split has seeds and names of its own."""

    def size(self, split: str) -> int:
        """Return 2^31: there is no end of stories.

        Raises: SettingError for an unknown split.
        """
        if split not in SPLITS:
            raise SettingError("split", split, f"choose one of {', '.join(SPLITS)}")
        return 2**31

    def item(self, split: str, seed: int, index: int) -> Item:
        """Return the story at this index."""
        generated = story(split, seed, index)
        return Item(
            key=f"{split}/{seed}/{index}",
            prompt=prompt_of(generated.passage),
            reference=generated.reference,
            columns={"passage": generated.passage, "events": generated.events},
        )


@checked_arguments
def grounded_summary(
    *, max_new_tokens: int = MAX_NEW_TOKENS, max_prompt_tokens: int = MAX_PROMPT_TOKENS, device: str = "cpu"
) -> TextTask:
    """One sentence about a short passage of news; the reward is that a learned classifier finds it entailed.

    Prompt: A passage of three to six sentences about two or three events, then `Summary:`.

    Reward: A small classifier's probability that the passage entails the completion, in [0, 1].

    Episode end: The end token; at the length limit, the text is scored as it stands.

    Splits: Stories are drawn without end. Each split has random streams and names of its own.

    Args:
        max_new_tokens: Length limit of a completion.
        max_prompt_tokens: Length limit of a prompt.
        device: Where the classifier runs.
    """

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
    """Return the embedded classifier, which is opened when it is first needed, once in a process."""
    return Entailment(CLASSIFIER, premise="passage", device=device)


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`truth`, `parsable` (0 or 1), `coverage` of the main event's facts and `rouge2`, each in [0, 1]."""
    overlaps = rouge("rouge2")(completions, [item.reference for item in items])
    measures = []
    for item, completion, overlap in zip(items, completions, overlaps, strict=True):
        verdict = judge(completion, item.columns["events"])  # type: ignore[arg-type]
        measures.append(
            {
                "truth": float(verdict.true),
                "parsable": float(verdict.parsable),
                "coverage": verdict.coverage,
                "rouge2": overlap,
            }
        )
    return measures
