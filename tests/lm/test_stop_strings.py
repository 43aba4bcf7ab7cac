"""Stop strings against a slow search of the whole text after each token, over tokenizers of all kinds."""

from __future__ import annotations

import random

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlgkd.errors import SettingError
from rlgkd.lm import load_tokenizer
from rlgkd.lm.stop_strings import StopStrings

END = "<end>"


def byte_level() -> PreTrainedTokenizerFast:
    """A token for each byte, and some of several: words, halves of characters, a stop string with text after it."""
    pieces = ("\nok", "STOP it", " STOP", "ST", "OP")
    broken = ("é".encode()[1:] + b"x", "€".encode()[:2], "€".encode()[2:] + b"\n")
    return tiny.byte_tokenizer(*(bytes([byte]) for byte in range(256)), *(p.encode() for p in pieces), *broken)


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces in front of words, the first one dropped, and bytes where nothing else fits."""
    words = ["▁", "▁the", "▁end", "end", "the", "a", "▁a", ".", "▁.", "x▁", "\n"]
    vocabulary = {token: n for n, token in enumerate([END, *words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, clean_up_tokenization_spaces=False)


def wordpiece() -> PreTrainedTokenizerFast:
    vocabulary = {token: n for n, token in enumerate([END, "un", "##want", "##ed", "want", "end", "the", "##\n", "!"])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token=END))
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, clean_up_tokenization_spaces=False)


CASES = {
    "words": (lambda: tiny.word_tokenizer("A", "B", "C"), ["B C", "A", " B", "C A B", "A "]),
    "byte-level": (byte_level, ["\n", "STOP", "é", "€", "x\n", "aé€", " STOP it", "OPS", "\u20ac\n"]),
    "metaspace": (metaspace, ["\n", "the end", " end", "end.", " ", "é", "a.", "x ", "\u20ac"]),
    "word pieces": (wordpiece, ["wanted", "unwant", "end the", "want ", "!", "##", "\n"]),
    "embedded": (lambda: load_tokenizer("embedded:grounded-student"), ["the", " in", ".", "e s", "ool", "9"]),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_text_ends_with_the_token_that_first_completes_a_stop_string(kind: str) -> None:
    make, strings = CASES[kind]
    tokenizer, rng = make(), random.Random(0)
    interesting = [t for t in range(len(tokenizer)) if any(c in "STOPthend.\nwxa é" for c in tokenizer.decode([t]))]
    interesting += [t for t in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([t, t])]
    found = 0
    for given in [*([s] for s in strings), strings[:2], strings[2:4]]:
        stops = StopStrings(tokenizer, given)
        for _ in range(60):
            ids = rng.choices([*interesting, *tokenizer.encode("é€", add_special_tokens=False)], k=25)
            if rng.random() < 0.7:  # a stop string on purpose
                ids[9:9] = tokenizer.encode(given[0], add_special_tokens=False)
            texts = [tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
            expected = next((n + 1 for n, text in enumerate(texts) if any(s in text for s in given)), len(ids))
            found_end = next((n + 1 for n in range(len(ids)) if stops.should_stop(ids[: n + 1])), len(ids))
            assert found_end == len(stops.truncate(ids)) == expected, (given, texts[-1])
            assert not any(s in stops.text_before_stop(texts[expected - 1]) for s in given)
            found += expected < len(ids)
    assert found > 50


def test_the_text_ends_before_the_first_stop_string_whatever_follows_in_its_token() -> None:
    stops = StopStrings(tiny.word_tokenizer("A"), ["STOP", "P it", "zz"])
    assert stops.text_before_stop("go on STOP it") == "go on " and stops.text_before_stop("go on") == "go on"
    assert stops.text_before_stop("STOP") == "" and stops.text_before_stop("a zz STOP") == "a "


def test_a_character_of_several_bytes_ends_a_text_when_it_is_complete() -> None:
    tokenizer = byte_level()
    first, second = tokenizer.encode("é", add_special_tokens=False)
    stops = StopStrings(tokenizer, "é")
    assert not stops.should_stop([first]) and stops.should_stop([first, second]) and not stops.should_stop([second])


def test_special_tokens_between_the_parts_of_a_stop_string_do_not_hide_it() -> None:
    tokenizer = byte_level()
    pieces = tokenizer.encode("STOP", add_special_tokens=False)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    ids = [pieces[0], *[tokenizer.pad_token_id] * 40, *pieces[1:]]
    assert StopStrings(tokenizer, "STOP").should_stop(ids)


def test_tokens_that_cannot_complete_a_stop_string_are_decoded_once_and_texts_not_at_all() -> None:
    tokenizer = byte_level()
    stops, decoded = StopStrings(tokenizer, "\n\n"), []
    text = stops.text
    stops.text = lambda ids: decoded.append(len(ids)) or text(ids)  # type: ignore[method-assign]
    ids = tokenizer.encode("all the letters are here, and here again " * 20, add_special_tokens=False)
    assert stops.truncate(ids) == ids and len(decoded) == 2 * len(set(ids)) and max(decoded) == 2
    decoded.clear()
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert not stops.should_stop([*ids, *newline]) and max(decoded) <= 4, "a tail is enough where it holds none"
    assert stops.should_stop([*ids, *newline, *newline])


@pytest.mark.parametrize("strings", ["", ["a", ""], [3], 3, None, {"a": 1}])
def test_anything_but_nonempty_strings_is_refused(strings: object) -> None:
    with pytest.raises(SettingError, match=r"stop: .* does not work; give a string or a list of strings, none of them"):
        StopStrings(tiny.word_tokenizer("A"), strings)


def test_a_special_token_is_refused_since_no_text_holds_one() -> None:
    with pytest.raises(
        SettingError, match=r"stop: 'A<end>' does not work; texts hold no special tokens such as '<end>'"
    ):
        StopStrings(tiny.word_tokenizer("A"), ["A<end>"])
