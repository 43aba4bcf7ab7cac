"""Every setting of a registered function is declared once: a keyword-only parameter with a sentence in `Args`."""

from __future__ import annotations

import inspect

import pytest

from rlgkd.ops._registry import setting_docs
from rlgkd.ops.behaviour_policy import BEHAVIOURS
from rlgkd.ops.divergence import DIVERGENCES
from rlgkd.ops.policy_loss import POLICY_LOSSES
from rlgkd.ops.returns import ADVANTAGES

TABLES = {
    "divergence": DIVERGENCES,
    "policy_loss": POLICY_LOSSES,
    "behaviour": BEHAVIOURS,
    "advantage": ADVANTAGES,
}
FUNCTIONS = [(kind, name) for kind, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), FUNCTIONS)
def test_each_setting_has_one_sentence_with_its_range(kind: str, name: str) -> None:
    function = TABLES[kind][name]
    settings = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    docs = setting_docs(function)
    assert list(docs) == [p.name for p in settings]
    for parameter in settings:
        sentence = docs[parameter.name]
        assert sentence[0].isupper() and sentence.endswith(".") and ". " not in sentence
        assert parameter.annotation is bool or any(word in sentence for word in (" in (", " in [", " or more"))


def test_the_sentence_of_a_function_without_settings_or_docstring_is_absent() -> None:
    assert setting_docs(DIVERGENCES["forward_kl"]) == {}
    assert setting_docs(lambda teacher_logits, student_logits, *, share=0.5: teacher_logits) == {}


def test_continued_lines_are_joined_and_the_next_section_is_left_out() -> None:
    sentence = setting_docs(DIVERGENCES["jsd"])["beta"]
    assert sentence.startswith("The teacher's weight in the mixture, in (0, 1),") and sentence.endswith("like reverse.")
    assert setting_docs(DIVERGENCES["jsd"])["normalized"].endswith("keeps its scale.")
