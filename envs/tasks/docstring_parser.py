"""Splits a docstring into its first line and its prose, if both are fit for a summarisation task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

SUMMARY_WORDS = (3, 20)
"""Limits of the first line."""
BODY_WORDS = (12, 56)
"""Limits of the prose: as many leading paragraphs as fit. A docstring whose first paragraph does not fit is skipped."""

_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?|Warnings?|See [Aa]lso)\s*:")
_MARKUP = re.compile(r"[\\$<>{}|@]|::|:\w+:|://")


def parse_docstring(text: str) -> tuple[str, str] | None:
    """Return summary and body of a cleaned docstring, or None if it is not fit to be an item.

    Examples:
        >>> parse_docstring('''Return the mean of the values.
        ...
        ... The values are added up with extended precision and divided by how many
        ... there are; an empty sequence is an error.
        ...
        ... Args:
        ...     values: The numbers.
        ... ''')
        ('Return the mean of the values.', 'The values are added up with ... an empty sequence is an error.')
    """
    first, *blocks = re.split(r"\n\s*\n", text.strip())
    if not blocks and "\n" not in first:
        return None
    if re.fullmatch(r"[\w.]+\(.*\)(\s*->.*)?", first) and blocks:  # C functions have their signature here
        first, *blocks = blocks
    summary, rest = _first_sentence(first)
    summary = _without_markup(summary)
    if not re.fullmatch(r"[A-Z][\w ,;:'\"()/.-]*", summary) or not _within(words_of(summary), SUMMARY_WORDS):
        return None
    summary = summary if summary.endswith(".") else f"{summary}."
    body = " ".join(_prose([rest, *blocks] if rest else blocks))
    if not _within(words_of(body), BODY_WORDS) or " ".join(words_of(summary)) in " ".join(words_of(body)):
        return None
    return summary, body


def words_of(text: str) -> list[str]:
    """Return the words of a text, case folded."""
    return re.findall(r"\w+", text.casefold())


def _first_sentence(paragraph: str) -> tuple[str, str]:
    """The first line, or the whole sentence if it continues on the next line; and the rest of the paragraph."""
    line, _, rest = paragraph.partition("\n")
    if not rest or line.rstrip().endswith("."):
        return line, rest
    sentence, end, rest = paragraph.partition(". ") if ". " in paragraph else paragraph.partition(".\n")
    return sentence + end.rstrip(), rest


def _prose(blocks: Sequence[str]) -> Iterator[str]:
    """The leading paragraphs of plain prose that fit into BODY_WORDS; version notes between them are skipped."""
    total = 0
    for block in blocks:
        lines = block.splitlines()
        if re.match(r"\.\. (versionadded|versionchanged|deprecated)::|(Explanation|Description)$", lines[0]):
            continue
        heading = len(lines) > 1 and re.fullmatch(r"[-=~^*+#]{3,}\s*", lines[1])
        indented = any(line != line.lstrip() for line in lines)
        if heading or indented or not re.match(r"[\w`*\"(]", lines[0]) or _SECTION.match(lines[0]):
            return
        paragraph = _without_markup(re.sub(r"\s*\[\w+\]_", "", " ".join(lines)))  # without the marks of footnotes
        total += len(words_of(paragraph))
        if total > BODY_WORDS[1] or not re.search(r"[.!?][)\"']?$", paragraph) or _MARKUP.search(paragraph):
            return
        yield paragraph


def _without_markup(text: str) -> str:
    """The text without RST and Markdown: of roles, links, emphasis and quoted code only the text stays."""
    text = re.sub(r":(?:\w+:)+`[~!.]?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_+", r"\1", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    text = re.sub(r"\[`([^`]+)`\]", r"\1", text)
    text = re.sub(r"(`+)([^`]+)\1_*", r"\2", text)
    text = re.sub(r"(?<![\w.)])(~\.?|\.)(?=[A-Za-z]\w+)", "", text)  # `~.Figure` in Matplotlib
    text = re.sub(r"(?<!\w)(\*{1,2})(\w[^*]*?)\1(?!\w)", r"\2", text)
    return " ".join(text.split())


def _within(words: Sequence[str], limits: tuple[int, int]) -> bool:
    return limits[0] <= len(words) <= limits[1]
