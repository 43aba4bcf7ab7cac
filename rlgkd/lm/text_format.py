"""Which tokens begin and end a text of a model, and whether two models agree on its end.

A tokenizer names one end token. Chat models have more, in `config` and `generation_config`: the end of a turn next to
the end of a document. A text ends with any of them, in training as where the model is served.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from rlgkd.errors import ModelError

_log = logging.getLogger(__name__)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's end token.

    Raises: ModelError if it has none; without one no completion can end by itself.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("tokenizer", tokenizer.name_or_path, "set its eos_token, without which no text can end")
    return cast(int, tokenizer.eos_token_id)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Special tokens, id -> text: the named ones, and those that were only added as special."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**dict(named), **added}


def tokens_before_texts(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text."""
    ordinary = tokenizer.decode(min(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))  # it knows this word
    encoded = tokenizer(ordinary, return_special_tokens_mask=True)
    ids, special = cast(list[int], encoded["input_ids"]), cast(list[int], encoded["special_tokens_mask"])
    return [id_ for id_, _ in takewhile(lambda pair: pair[1], zip(ids, special, strict=True))] if 0 in special else []


def model_end_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a text of the model: its tokenizer's, and those of its two configurations."""
    configs = (module.config, getattr(module, "generation_config", None))
    return _end_ids(tokenizer, (getattr(config, "eos_token_id", None) for config in configs))


def tokenizer_end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's end id and, if it was opened from a model's folder, those of the configurations there."""
    return _end_ids(
        tokenizer,
        (_read(tokenizer.name_or_path, file).get("eos_token_id") for file in ("config.json", "generation_config.json")),
    )


def warn_of_other_end(
    tokenizer: PreTrainedTokenizerBase,
    end_ids: frozenset[int],
    other: PreTrainedTokenizerBase,
    other_end_ids: frozenset[int],
    *,
    owner: str,
) -> None:
    """Log where a teacher, with the `other` tokenizer, ends texts otherwise than the `owner` of the first one."""
    if end_ids != other_end_ids or end_token(tokenizer) != end_token(other):
        _log.warning(
            "the teacher ends a text with %s, the %s with %s: it gives the %s's end little probability; give a teacher "
            "with the same end tokens",
            _names(other, other_end_ids),
            owner,
            _names(tokenizer, end_ids),
            owner,
        )


def _names(tokenizer: PreTrainedTokenizerBase, ids: frozenset[int]) -> str:
    """The tokens of these ids, the tokenizer's own end token first."""
    own = end_token(tokenizer)
    return ", ".join(
        repr(tokenizer.convert_ids_to_tokens(id_)) for id_ in sorted(ids, key=lambda id_: (id_ != own, id_))
    )


def _end_ids(tokenizer: PreTrainedTokenizerBase, given: Iterable[Any]) -> frozenset[int]:
    ids = {end_token(tokenizer)}
    for found in given:
        for id_ in found if isinstance(found, list | tuple) else [found]:
            if not isinstance(id_, int | None):
                raise ModelError("model", tokenizer.name_or_path, f"its configuration has {id_!r} as an end id; fix it")
            # An id past the vocabulary, such as GPT-2's default one, cannot be sampled.
            if id_ is None or not 0 <= id_ < len(tokenizer):
                continue
            if id_ in tokenizer.added_tokens_decoder or id_ in tokenizer.all_special_ids:
                ids.add(int(id_))
            elif id_ not in ids:  # most likely a default that nobody has fitted to the tokenizer
                _warn_of_ordinary_token(int(id_), str(tokenizer.convert_ids_to_tokens(int(id_))))
    return frozenset(ids)


@cache
def _warn_of_ordinary_token(id_: int, token: str) -> None:
    _log.warning(
        "the model's configuration has the end id %d, which its tokenizer has as the ordinary token %r: it ends no "
        "text here; give it as a stop string if it should",
        id_,
        token,
    )


def _read(name: str, file: str) -> dict[str, Any]:
    """A JSON file of a local folder, or of a hub's model that is in the cache; empty if there is none."""
    if not name:
        return {}
    try:
        path = cached_file(
            name,
            file,
            local_files_only=True,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        found = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError):
        return {}  # a damaged file is reported when the model is opened
    return found if isinstance(found, dict) else {}
