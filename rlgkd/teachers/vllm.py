"""The shapes in which a vLLM server is asked for log-probabilities and answers, with every check that an answer needs.

A completion of one token that nobody wants is asked for, with `prompt_logprobs=k`: for each position of the prompt but
the first, the answer has an object {token id: {logprob, rank, decoded_token}} of the k most probable tokens there and
of the token that stands there, so of k or k + 1 tokens. Temperature plays no part in it. (Checked with vLLM 0.32.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlgkd.errors import one_line
from rlgkd.teachers.known_text import KnownText

TINY = 2.0**-23
"""The least mass of all other tokens: what float32 leaves of 1."""


def request(model: str, tokens: Sequence[int], k: int) -> dict[str, object]:
    """The body that asks for the log-probabilities of a text's tokens."""
    return {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 1, "prompt_logprobs": k}


def known_text(
    answer: Any, tokens: Sequence[int], action_columns: Sequence[int], *, model: str, k: int, vocabulary: int
) -> KnownText:
    """Return what an answer says of a text's actions.

    Args:
        answer: The JSON of the answer to `request`.
        tokens: The ids that were sent.
        action_columns: Which of them were actions.
        model: The name that was sent.
        k: What was asked for.
        vocabulary: The student's tokens are the first so many. The probabilities of others are left out, and those of
            the first are renormalised, as far as the others are known.

    Raises: ValueError for an answer that is anything but whole, with what is wrong.
    """
    positions = _positions(answer, len(tokens), model)
    length = len(action_columns)
    logp_LK = np.full((length, k), -np.inf, dtype=np.float64)
    ids_LK = np.zeros((length, k), dtype=np.int64)
    token_logp_L, outside_L = np.zeros(length), np.zeros(length)
    for row, column in enumerate(action_columns):
        logps = _log_probabilities(positions[column], column)
        written = int(tokens[column])
        if written not in logps:
            raise ValueError(f"at position {column} it lacks the token {written}, which stands there")
        token_logp_L[row] = logps[written]
        if len(logps) not in ((1,) if k == 0 else (k, k + 1)):
            raise ValueError(f"at position {column} it has {len(logps)} tokens, and {k} were asked for")
        if len(logps) == k + 1:
            del logps[written]
        top = sorted(((logp, id_) for id_, logp in logps.items() if id_ < vocabulary), key=lambda pair: -pair[0])
        if k and not top:  # the likeliest are all others' tokens: what is known of the student's is the written one
            top = [(float(token_logp_L[row]), written)]
        outside_L[row] = sum(math.exp(logp) for id_, logp in logps.items() if id_ >= vocabulary)
        logp_LK[row, : len(top)] = [logp for logp, _ in top]
        ids_LK[row, : len(top)] = [id_ for _, id_ in top]
        ids_LK[row, len(top) :] = top[0][1] if top else 0  # none only where none were asked for
    if (outside_L > 1 - TINY).any():
        raise ValueError("it gives all its probability to tokens that the student does not have")
    inside_L1 = np.log1p(-outside_L)[:, None]
    mass_L = np.exp(logp_LK - inside_L1).sum(axis=1)
    if (mass_L > 1 + 1e-3).any():
        raise ValueError(f"its probabilities sum to {mass_L.max():.6g}")
    return KnownText(
        logp_LK=np.minimum(logp_LK - inside_L1, 0.0).astype(np.float32),
        ids_LK=ids_LK,
        rest_L=np.log(np.maximum(1 - mass_L, TINY)).astype(np.float32),
        token_logp_L=np.minimum(token_logp_L - inside_L1[:, 0], 0.0).astype(np.float32),
    )


def _positions(answer: Any, length: int, model: str) -> list[Any]:
    try:
        named, (choice,) = answer["model"], answer["choices"]
        positions = choice["prompt_logprobs"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it answered with no prompt_logprobs: {one_line(answer, 80)!r}") from error
    if named != model:
        raise ValueError(f"it answered as {one_line(named, 80)!r}, not as {model!r}")
    if not isinstance(positions, list) or len(positions) != length:
        size = len(positions) if isinstance(positions, list) else 0
        raise ValueError(f"it answered for {size} positions of a text of {length}")
    return positions


def _log_probabilities(position: Any, column: int) -> dict[int, float]:
    """Token id -> log-probability at a position, each a finite number of at most 0 but for rounding."""
    found: dict[int, float] = {}
    if not isinstance(position, dict):
        raise ValueError(f"at position {column} it has {one_line(position, 40)!r}, not log-probabilities")
    for key, value in position.items():
        logp = value.get("logprob") if isinstance(value, dict) else None
        if isinstance(logp, bool) or not isinstance(logp, int | float) or not -1e6 < logp < 1e-3:
            raise ValueError(f"at position {column} it has {one_line(value, 60)!r} as a log-probability")
        if not (key.isascii() and key.isdecimal()):
            raise ValueError(f"at position {column} it has {one_line(key, 20)!r} as a token id")
        found[int(key)] = float(logp)
    if len(found) != len(position):
        raise ValueError(f"at position {column} it has a token twice")
    return found
