"""Which tokens end a text of a model.

A tokenizer names one end token. Chat models have more, in `config` and `generation_config`: the end of a turn next to
the end of a document. A text ends with any of them, in training as where the model is served.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import cache
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


def _end_ids(tokenizer: PreTrainedTokenizerBase, given: Iterable[Any]) -> frozenset[int]:
    ids = {end_token(tokenizer)}
    for found in given:
        for id_ in found if isinstance(found, list | tuple) else [found]:
            # An id past the vocabulary, such as GPT-2's default one, cannot be sampled.
            if id_ is None or not 0 <= id_ < len(tokenizer):
                continue
            if id_ in tokenizer.added_tokens_decoder or id_ in tokenizer.all_special_ids:
                ids.add(int(id_))
            elif id_ not in ids:  # most likely the default of a configuration that was never told of its tokenizer
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
        return {}  # whoever opens the model reports a damaged file
    return found if isinstance(found, dict) else {}
