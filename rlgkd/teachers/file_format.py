"""The file of a teacher's log-probabilities: safetensors, which `rlgkd teach` writes and a `FileTeacher` reads.

N actions of S texts, T tokens of all texts together:

    keys            uint8 [S, 16]   hash of a text's token ids and of which of them are actions
    tokens          int32 [T]       the token ids, prompts included
    actions         uint8 [T]       1 at an action
    token_offsets   int64 [S + 1]   where a text begins in `tokens`
    logp            float16 [N, K]  of the K most probable tokens, in nats, in descending order
    ids             int32 [N, K]    their ids
    rest            float16 [N]     the log-probability of all other tokens together
    token_logp      float16 [N]     the log-probability of the token that was written
    offsets         int64 [S + 1]   where a text begins in `logp`
    checks          uint8 [S, 16]   hash of what is said of a text; files of older versions have none

Half precision holds a log-probability to one part in 2,000. The mass of the other tokens is kept by itself, since one
less the sum of rounded probabilities would be off by more than it often is. What the file is of, and which tokenizer
its ids are of, is in the metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, Literal, Self

import numpy as np
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from rlgkd.teachers.known_text import LOWEST, KnownText
from rlgkd.types import Episode

FORMAT = "rlgkd-teacher-1"
TENSORS = ("keys", "tokens", "actions", "token_offsets", "logp", "ids", "rest", "token_logp", "offsets")
CHECKS = "checks"
SAID: Final = ("logp", "ids", "rest", "token_logp")
"""The tensors that say something of each action."""
TextsOf = Literal["references", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file is of."""

    teacher: str
    """The teacher's name."""
    texts: TextsOf
    """Who has written the texts."""
    tokenizer: str
    """Fingerprint of the student's tokenizer (`fingerprint`)."""
    end_ids: tuple[int, ...]
    """The tokens with which the teacher ends a text."""

    def to_metadata(self) -> dict[str, str]:
        """As the metadata of a safetensors file."""
        return {"format": FORMAT, "contents": json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str] | None) -> Self:
        """What `to_metadata` gave.

        Raises: ValueError, KeyError or TypeError for anything else.
        """
        if (metadata or {}).get("format") != FORMAT:
            raise ValueError("it is no file that rlgkd teach has written")
        found = json.loads((metadata or {})["contents"])
        contents = cls(**{**found, "end_ids": tuple(map(int, found["end_ids"]))})
        if contents.texts not in ("references", "teacher"):
            raise ValueError(f"its texts are {contents.texts!r}")
        return contents


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the tokens of a tokenizer and their ids, in hexadecimal."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()


def key_of(tokens_T: np.ndarray, action_mask_T: np.ndarray) -> bytes:
    """A hash of 16 bytes of a text's ids, and of which of them are actions."""
    digest = hashlib.blake2b(tokens_T.astype("<i4").tobytes(), digest_size=16)
    digest.update(action_mask_T.astype(np.uint8).tobytes())
    return digest.digest()


def check_of(said: Mapping[str, np.ndarray]) -> bytes:
    """A hash of 16 bytes of what a file says of one text: the rows of `SAID`."""
    digest = hashlib.blake2b(digest_size=16)
    for name in SAID:
        digest.update(np.ascontiguousarray(said[name]).tobytes())
    return digest.digest()


def to_bytes(texts: Iterable[tuple[Episode, KnownText]], contents: Contents) -> bytes:
    """The content of a file of these texts, one or more; of equal ones the first is kept."""
    kept: dict[bytes, tuple[Episode, KnownText]] = {}
    for episode, known in texts:
        kept.setdefault(key_of(episode.tokens_T, episode.action_mask_T), (episode, known))
    episodes, all_known = zip(*kept.values(), strict=True)

    def half(values: Sequence[np.ndarray]) -> Any:
        return np.maximum(np.concatenate(values), LOWEST).astype(np.float16)

    tensors: dict[str, Any] = {
        "keys": np.frombuffer(b"".join(kept), dtype=np.uint8).reshape(-1, 16),
        "tokens": np.concatenate([episode.tokens_T for episode in episodes]).astype(np.int32),
        "actions": np.concatenate([episode.action_mask_T for episode in episodes]).astype(np.uint8),
        "token_offsets": _offsets([len(episode.tokens_T) for episode in episodes]),
        "logp": half([known.logp_LK for known in all_known]),
        "ids": np.concatenate([known.ids_LK for known in all_known]).astype(np.int32),
        "rest": half([known.rest_L for known in all_known]),
        "token_logp": half([known.token_logp_L for known in all_known]),
        "offsets": _offsets([episode.length for episode in episodes]),
    }
    rows = pairwise(tensors["offsets"].tolist())
    checks = [check_of({name: tensors[name][start:end] for name in SAID}) for start, end in rows]
    tensors[CHECKS] = np.frombuffer(b"".join(checks), dtype=np.uint8).reshape(-1, 16)
    return save(tensors, contents.to_metadata())


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
