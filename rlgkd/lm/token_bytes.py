"""The bytes that each token of a tokenizer writes, for texts that two tokenizers write differently.

Two families are known: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), whose letters stand for bytes, and those of
SentencePiece with a mark for the space (Llama 2, Gemma, Mistral), whose rare bytes are tokens such as `<0x0A>`. Others
rewrite texts or join words by a rule (WordPiece), so that their tokens are no pieces of a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlgkd.errors import ModelError
from rlgkd.lm.text_format import special_tokens

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
PLAIN = frozenset({*range(33, 127), *range(161, 173), *range(174, 256)})
"""Bytes that a byte-level tokenizer writes as the letter of that number; the others follow from 256 on."""
PIECES = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
"""Decoders of SentencePiece's kind."""


def token_bytes(tokenizer: PreTrainedTokenizerBase, *, field: str = "teacher", name: str = "") -> list[bytes]:
    """Return the bytes that each token writes, by id; special tokens write their names.

    Args:
        tokenizer: One of a known family.
        field: The setting that named its model.
        name: The model's name.

    Raises:
        ModelError: A tokenizer of another family.
    """
    decoder = _decoder(tokenizer)
    kinds = {part["type"] for part in decoder}
    if "ByteLevel" in kinds:
        letters = _letters()
        texts = [_of_letters(token, letters) for token in _tokens(tokenizer)]
    elif kinds and kinds <= PIECES:
        mark = _space_mark(decoder)
        texts = [_of_piece(token, mark) for token in _tokens(tokenizer)]
    else:
        kind = ", ".join(sorted(kinds)) or "without a decoder"
        remedy = f"its tokens ({kind}) are no pieces of a text's bytes, so it cannot be aligned with another tokenizer"
        raise ModelError(field, name or tokenizer.name_or_path, f"{remedy}; give a byte-level or a SentencePiece one")
    for id_, token in tokenizer.added_tokens_decoder.items():
        texts[id_] = token.content.encode()
    for id_, text in special_tokens(tokenizer).items():
        texts[id_] = text.encode()
    return texts


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, in which nothing becomes a special token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def pieces_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes], text: str
) -> tuple[list[int], list[int]] | None:
    """The ids of a text and how many of its bytes each one writes; None if they do not write this text.

    Args:
        tokenizer: Whose ids.
        texts: Its `token_bytes`.
        text: Plain text. Of a space that the tokenizer puts in front of every text, one of the text's own takes the
            place, or the first token has a byte less.
    """
    wanted = text.encode()
    ids = plain_ids(tokenizer, text)
    written = b"".join(texts[id_] for id_ in ids)
    if written == b" " + wanted and text.startswith(" "):
        ids = plain_ids(tokenizer, text[1:])
        written = b"".join(texts[id_] for id_ in ids)
    sizes = [len(texts[id_]) for id_ in ids]
    if written == b" " + wanted:
        sizes[0] -= 1
    elif written != wanted:
        return None
    return ids, sizes


def _tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    by_id = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    return [by_id.get(id_, "") for id_ in range(max(by_id) + 1)]


def _decoder(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The steps of its decoder; none if it has none that is known."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return []
    found = json.loads(backend.decoder.__getstate__())
    return list(found["decoders"]) if found["type"] == "Sequence" else [found]


def _space_mark(decoder: list[dict[str, Any]]) -> str:
    for part in decoder:
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "Replace" and part["content"] == " ":
            return str(part["pattern"].get("String", "\u2581"))
    return "\u2581"


def _letters() -> dict[str, int]:
    others = iter(range(256, 512))
    return {chr(byte if byte in PLAIN else next(others)): byte for byte in range(256)}


def _of_letters(token: str, letters: dict[str, int]) -> bytes:
    """A token of a byte-level tokenizer; one with another letter in it was added, as text."""
    found = [letters.get(letter) for letter in token]
    return token.encode() if None in found else bytes(byte for byte in found if byte is not None)


def _of_piece(token: str, mark: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(mark, " ").encode()
