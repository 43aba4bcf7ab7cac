"""Whether two models have the same tokens, or one has all of the other's and more after them."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from rlgkd.errors import ModelError

MAX_NAMED = 3
"""Tokens that one message names."""
_log = logging.getLogger(__name__)


def same_vocabulary(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether the other one has all tokens of the first with the same ids, perhaps with more after them."""
    theirs = other.get_vocab()
    return all(theirs.get(token) == id_ for token, id_ in tokenizer.get_vocab().items())


def check_same_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    *,
    field: str = "teacher",
    owner: str = "student",
    name: str = "",
) -> None:
    """Raise ModelError unless both tokenizers map the same tokens to the same ids, as a divergence needs.

    Args:
        tokenizer: The `owner`'s.
        other: Must equal it.
        field: The setting that named the model of `other`.
        owner: Whose the first tokenizer is.
        name: The name of the model of `other`.
    """
    if tokenizer.get_vocab() != other.get_vocab():
        raise _differs(tokenizer, other, field, owner, name)


def shared_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    *,
    field: str = "teacher",
    owner: str = "student",
    name: str = "",
) -> int:
    """Return how many first tokens a teacher shares with its student: all of the student's.

    A teacher may have more tokens after them. Its distribution P is then renormalised over those V_S of the student,
    P(v) / P(V_S), which is logged: docs/mathematics.md has what this changes. Arguments: see `check_same_vocabulary`.

    Raises: ModelError unless each of the `owner`'s tokens has the same id in `other`, and the others follow them.
    """
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    count = len(tokenizer)
    more = sorted(theirs.keys() - ours.keys(), key=theirs.__getitem__)
    if any(theirs.get(token) != id_ for token, id_ in ours.items()) or any(theirs[token] < count for token in more):
        raise _differs(tokenizer, other, field, owner, name)
    if more:
        _log.warning(
            "the %s's vocabulary has %d tokens more than the %s's (%s): its probabilities are renormalised over those "
            "of the %s, and it writes no others",
            field,
            len(more),
            owner,
            ", ".join(map(repr, more[:MAX_NAMED])) + ", ..." * (len(more) > MAX_NAMED),
            owner,
        )
    return count


def _differs(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, field: str, owner: str, name: str
) -> ModelError:
    """The error that says how the vocabulary of `other` differs."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    remedy = f"its vocabulary differs from the {owner}'s ({len(theirs)} against {len(ours)} tokens, "
    if more := [token for token in theirs if token not in ours]:
        first = min(more, key=theirs.__getitem__)
        if all(theirs.get(token) == id_ for token, id_ in ours.items()):
            remedy += f"it only has more, but not all after them: {first!r} has the id {theirs[first]}"
            more_remedy = f"give a {field} whose own tokens come after the {owner}'s {len(tokenizer)}"
            return ModelError(field, name or other.name_or_path, f"{remedy}); {more_remedy}")
    odd = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    remedy += f"{len(odd)} differ, first {odd[0]!r}); give a {field} with the {owner}'s tokenizer"
    if field == "teacher" and owner == "student":
        remedy += ", or set teacher_tokens to spans or map"
    return ModelError(field, name or other.name_or_path, remedy)
