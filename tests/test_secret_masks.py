"""Secrets stand nowhere in what is written; names of environment variables do, so that a run can be run again."""

from __future__ import annotations

import time

import pytest

from rlgkd.errors import SettingError
from rlgkd.scripts.config.reading import check, dump
from rlgkd.secret_masks import masked

SERVED = {
    "name": "served",
    "url": "http://me:PASSWORD@host/r?a=1&api_key=QUERY",
    "headers": {"Authorization": "Bearer HEADER", "X-Api-Key": "HEADER", "X-Run": "7"},
}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("http://me:PASSWORD@host/r?a=1&api_key=QUERY#b", "http://***:***@host/r?a=1&api_key=***#b"),
        ("http://$ME:${PASSWORD}@host/r?key=$KEY", "http://$ME:${PASSWORD}@host/r?key=$KEY"),
        ({"headers": {"Authorization": "Bearer $KEY"}}, {"headers": {"Authorization": "Bearer $KEY"}}),
        ({"headers": {"Authorization": "Bearer a$KEY"}}, {"headers": {"Authorization": "Bearer ***"}}),
        ({"headers": {"X-Token": "a", "X-Run": "7"}}, {"headers": {"X-Token": "***", "X-Run": "7"}}),
        (
            [{"api_key": "a", "api_key_env": "KEY", "max_tokens": 3}],
            [{"api_key": "***", "api_key_env": "KEY", "max_tokens": 3}],
        ),
        (("a@b.c", "token: a", 3, None), ("a@b.c", "token: a", 3, None)),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_nothing_else(given: object, written: object) -> None:
    assert masked(given) == written


def test_neither_written_settings_nor_an_error_show_a_secret() -> None:
    config = check({"env": "rlgkd/Dataset-v0", "env_settings": {"reward": SERVED}, "student": "a", "alpha": 0})
    for text in (dump(config), str(SettingError("env_settings", {"reward": SERVED}, "no"))):
        assert not any(secret in text for secret in ("PASSWORD", "QUERY", "HEADER")) and "host/r?a=1" in text


@pytest.mark.parametrize("text", ["x" * 2_000_000, "?" + "key" * 500_000, "&" * 500_000, "a://" * 300_000])
def test_a_long_text_is_masked_in_no_time(text: str) -> None:
    """An error holds the value that does not work, whatever its size."""
    began = time.monotonic()
    masked(text)
    assert time.monotonic() - began < 10
