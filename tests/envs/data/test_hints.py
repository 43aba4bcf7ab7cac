"""The prompt that a template makes of an item for a teacher that sees more."""

from __future__ import annotations

import pytest

from rlgkd.envs.data.hints import SIBLING_PROMPT, hinted_by
from rlgkd.errors import DataError, SettingError
from rlgkd.types import Item, reads_sibling

ITEM = Item(key="x:1", prompt="P", reference="R", columns={"hint": "H", "none": None, "deep": {"in": 3}})


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{prompt} {reference} {hint}", "P R H"),
        ("hint", "H"),
        ("{deep.in}{{prompt}}", "3{prompt}"),
        ("{sibling} {prompt}", "P"),
        ("sibling", "P"),
    ],
)
def test_a_template_is_filled_with_the_items_columns(template: str, prompt: str) -> None:
    assert hinted_by(template)(ITEM).prompt == prompt


def test_a_sibling_is_a_column_that_only_some_items_have() -> None:
    item = Item(key="x:1", prompt="P", columns={"sibling": "S"})
    assert hinted_by("{sibling} {prompt}")(item).prompt == "S P"
    assert hinted_by("sibling")(item).prompt == SIBLING_PROMPT.format(sibling="S", prompt="P")
    assert [reads_sibling(text) for text in ("{a}{sibling}", "sibling", "{{sibling}}", "siblings", "{prompt}")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_in_a_conversation_the_users_last_message_is_replaced() -> None:
    messages = tuple({"role": role, "content": role[0].upper()} for role in ("system", "user", "assistant", "user"))
    item = Item(key="x:1", prompt="...", messages=messages, columns={"hint": "H"})
    found = hinted_by("{hint}{prompt}")(item).messages
    assert [message["content"] for message in found] == ["S", "U", "A", "HU"]
    with pytest.raises(DataError, match="no message of the user"):
        hinted_by("{hint}")(Item(key="x:1", prompt="S", messages=messages[:1], columns={"hint": "H"}))


def test_what_an_item_does_not_have_is_named() -> None:
    for template, message in (("{no}", "'x:1' has no such|x:1 has no such"), ("{none}", "it is null in x:1")):
        with pytest.raises(DataError, match=message):
            hinted_by(template)(ITEM)
    with pytest.raises(DataError, match="no such column; there are: 'prompt'"):
        hinted_by("{reference}")(Item(key="x:2", prompt="P"))
    with pytest.raises(SettingError, match=r"teacher_prompt: '\{' does not work"):
        hinted_by("{")
