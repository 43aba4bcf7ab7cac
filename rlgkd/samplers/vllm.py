"""The shapes in which a vLLM server is asked for texts and answers, with every check that an answer needs.

A completion with `logprobs=0` and `return_token_ids` has, for each of its `n` choices, the token ids and the
log-probability of each, of the distribution at the temperature if the server runs with `--logprobs-mode
processed_logprobs`. All that would bend the distribution is sent neutral, since a server's defaults come from the
model's own generation config. (The shapes are those of vLLM 0.32.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlgkd.errors import one_line
from rlgkd.lm.generate import Completion

NEUTRAL = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What leaves a distribution as it is."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Completions of one prompt that are asked for together."""

    prompt: Sequence[int]
    number: int
    """How many."""
    limit: int
    """The most tokens of each."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What ends a completion."""

    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()


def seed_of(*stream: object) -> int:
    """The seed of one stream of random numbers, in [0, 2^62); vLLM adds the number of a choice to it."""
    digest = hashlib.blake2b(repr(stream).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def request(model: str, wanted: Wanted, ends: Ends, *, temperature: float) -> dict[str, object]:
    """The body that asks for completions."""
    return {
        "model": model,
        "prompt": list(wanted.prompt),
        "n": wanted.number,
        "max_tokens": wanted.limit,
        "temperature": temperature,
        "seed": wanted.seed,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,  # what ends a text is said here, and nothing else does
        "stop_token_ids": sorted(ends.ids),
        "stop": list(ends.strings),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        **NEUTRAL,
    }


def completions(answer: Any, wanted: Wanted, ends: Ends, *, model: str, vocabulary: int) -> list[Completion]:
    """Return the completions of an answer to `request`, in their order; their entropies are not known, and NaN.

    Those that a stop string has ended may go on after it by some tokens.

    Args:
        answer: The JSON.
        wanted: What was asked for.
        ends: As it was sent.
        model: The name that was sent.
        vocabulary: The student's tokens are the first so many.

    Raises: ValueError for an answer that is anything but whole, with what is wrong.
    """
    try:
        named, choices = answer["model"], list(answer["choices"])
        by_index = {choice["index"]: choice for choice in choices}
    except (KeyError, TypeError) as error:
        raise ValueError(f"it answered with no completions: {one_line(answer, 80)!r}") from error
    if named != model:
        raise ValueError(f"it answered as {one_line(named, 80)!r}, not as {model!r}")
    if len(choices) != wanted.number or by_index.keys() != set(range(wanted.number)):
        raise ValueError(f"it answered with {len(choices)} completions, and {wanted.number} were asked for")
    return [_completion(by_index[index], wanted, ends, vocabulary) for index in range(wanted.number)]


def _completion(choice: dict[str, Any], wanted: Wanted, ends: Ends, vocabulary: int) -> Completion:
    ids, prompt, finish = (choice.get(name) for name in ("token_ids", "prompt_token_ids", "finish_reason"))
    logprobs = choice.get("logprobs")
    logp = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if prompt is not None and prompt != list(wanted.prompt):
        raise ValueError("it completed another prompt than it was sent")
    if not isinstance(ids, list) or not ids or len(ids) > wanted.limit:
        size = len(ids) if isinstance(ids, list) else "no"
        raise ValueError(f"it answered with {size} tokens, and 1 to {wanted.limit} were asked for")
    for id_ in ids:
        if type(id_) is not int or not 0 <= id_ < vocabulary:
            raise ValueError(f"it answered with the token {one_line(id_, 40)!r}, which the student does not have")
    if not isinstance(logp, list) or len(logp) != len(ids):
        size = len(logp) if isinstance(logp, list) else "no"
        raise ValueError(f"it answered with {size} log-probabilities of {len(ids)} tokens")
    for value in logp:
        # A log-softmax in 16 bits may be rounded to just above 0; `isinstance` holds True and False for integers.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 < value < 1e-3:
            raise ValueError(f"it has {one_line(value, 40)!r} as a log-probability")
    first_end = next((n for n, id_ in enumerate(ids, 1) if id_ in ends.ids), None)
    if first_end not in (None, len(ids)):
        raise ValueError(f"it went on after the end token {ids[first_end - 1]}")
    if finish == "length" and len(ids) < wanted.limit and first_end is None:
        raise ValueError(f"it stopped after {len(ids)} of {wanted.limit} tokens")
    if finish not in ("length", "stop") or (finish == "stop" and first_end is None and not ends.strings):
        raise ValueError(f"it stopped by {one_line(finish, 40)!r} without an end token")
    # A server does not give entropies: the student's are filled in when it runs over the text (rlgkd.agents.mismatch).
    return Completion(ids, [min(float(value), 0.0) for value in logp], [math.nan] * len(ids))
