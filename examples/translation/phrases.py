"""A part of the reward: the German words that are right, spelled as in Germany or in Switzerland."""


def words(completions: list[str], references: list[str]) -> list[float]:
    """The F1 of the words of a completion and its reference, in [0, 1]; ss stands for ß."""
    return [f1(swiss(said), swiss(right)) for said, right in zip(completions, references, strict=True)]


def swiss(text: str) -> list[str]:
    """A text's words as they are spelled without ß."""
    return text.replace("ß", "ss").split()


def f1(ours: list[str], theirs: list[str]) -> float:
    """The F1 of two lists of words."""
    common = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0
