"""Templates and columns: a row becomes an item, and the reward gets its columns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.envs import ListItems
from rlgkd.envs.data.items import read_items
from rlgkd.envs.data.rows import template
from rlgkd.envs.data.sources import Items
from rlgkd.errors import DataError, SettingError
from rlgkd.types import Item

ROWS = [{"question": f"What is {n} + {n}?", "answer": 2 * n, "level": n % 3} for n in range(60)]
SPLITS = ("train", "validation", "test")


def all_of(items: Items) -> dict[str, list[Item]]:
    """Every item of each split that there is, in the order of validation and test."""
    assert isinstance(items, ListItems)
    return {split: [items.item(split, 0, n) for n in range(items.size(split))] for split in SPLITS if has(items, split)}


def has(items: Items, split: str) -> bool:
    try:
        return items.size(split) > 0
    except DataError:
        return False


def test_a_template_fills_in_columns_and_leaves_doubled_braces_and_a_rows_own_braces() -> None:
    fill = template("prompt", "{{{a b}}} {n}{{n}} {n}")
    assert fill("x:1", {"a b": "{n} {{", "n": 3}) == "{{n} {{} 3{n} 3"


@pytest.mark.parametrize(
    "text", ["{x.}", "{.x}", "{x[0]}", "{x!r}", "{x:>9}", "{}", "{", "a } b", "{ x}", "{{x}", "{x{y}}", ""]
)
def test_a_template_that_holds_more_than_columns_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="prompt: "):
        template("prompt", text)


@settings(deadline=None, max_examples=50)
@given(name=st.from_regex(r"[a-z][a-z0-9_ -]{0,5}", fullmatch=True), value=st.text(), around=st.text())
def test_values_and_the_text_around_them_are_not_changed(name: str, value: str, around: str) -> None:
    doubled = around.replace("{", "{{").replace("}", "}}")
    assert template("prompt", f"{doubled}{{{name}}}")("x:1", {name: value}) == around + value


def test_a_column_in_doubled_braces_is_pointed_out_once(caplog: pytest.LogCaptureFixture) -> None:
    fill = template("prompt", "{{question}} {{other}} {{{question}}}")
    assert [fill("x:1", {"question": text}) for text in "ab"] == ["{question} {other} {a}", "{question} {other} {b}"]
    (record,) = caplog.records
    assert "writes {question} as it stands: for the column, do not double the braces" in record.getMessage()


def test_a_template_that_yaml_read_as_a_mapping_is_refused_with_how_to_quote_it() -> None:
    with pytest.raises(
        SettingError, match=r"""reference: .* 'env_settings\.reference="\{column\}"' on the command line"""
    ):
        template("reference", {"answer": None})


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(
        DataError, match=r"prompt: 'questoin' .*; 0 has no such column; there are: 'question', 'answer'"
    ):
        read_items(ROWS, prompt="{questoin}")


def test_without_a_setting_the_reference_is_the_column_of_that_name_where_there_is_one() -> None:
    items = all_of(read_items([{"prompt": "a", "reference": "b"}, {"prompt": "c"}]))["test"]
    assert [item.reference for item in items] == ["b", ""]
    with pytest.raises(DataError, match=r"reference: 'reference' .* 1 has no such column"):
        read_items([{"prompt": "a", "reference": "b"}, {"prompt": "c"}], reference="reference")


def test_a_column_that_only_some_rows_have_is_none_in_the_others() -> None:
    items = all_of(read_items([{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}]))["test"]
    assert [item.columns for item in items] == [{"x": 1, "y": None}, {"x": None, "y": 2}]
