"""Notes on payments: one of two was made, and its facts are found by a parser."""

from __future__ import annotations

import json
import random

from rlgkd.scripts.reproduction import payments
from rlgkd.scripts.runs.train import make_env


def test_the_record_and_the_line_are_of_the_payment_that_was_made() -> None:
    for seed in range(50):
        row = payments.draw(random.Random(seed))
        made = [
            template.format(thing=thing, **json.loads(row["record"]))
            for template in payments.MADE
            for thing in payments.THINGS
        ]
        assert sum(sentence in row["note"] for sentence in made) == 1
        assert row["line"] == f"{row['name']}, {row['date']}, {row['amount']}"
        assert row["note"] == payments.draw(random.Random(seed))["note"]


def test_a_record_counts_by_its_fields_and_what_is_none_counts_nothing() -> None:
    record = '{"name": "Jo Park", "date": "3 May", "amount": "12.50"}'
    texts = [record, record.replace("3 May", "4 May"), f"Sure: {record}", record[:-1], '{"name": "Jo Park"}', "[1]"]
    assert payments.right_fields(texts, [record] * 6) == [1.0, 2 / 3, 0.0, 0.0, 0.0, 0.0]
    assert payments.all_right(texts, [record] * 6) == [1.0, 0, 0, 0, 0, 0]
    assert payments.parses(texts) == [1.0, 1.0, 0, 0, 0, 0]


def test_the_reward_of_a_line_is_exploited_by_a_copy_of_the_note() -> None:
    row = payments.draw(random.Random(0))
    texts = [row["line"], row["note"], row["name"], ""]
    facts = {fact: [row[fact]] * 4 for fact in payments.FACTS}
    assert payments.named_facts(texts, **facts) == [1.0, 1.0, 1 / 3, 0.0]


def test_the_package_finds_them_as_data_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"data": f"{payments.__name__}:draw", "prompt": "{note}", "reference": "line", "reward": "exact"}
    task = make_env("rlgkd/Dataset-v0", settings, student="embedded:grounded-teacher", seed=0).task
    one, other = (task.item(split, 0, 0) for split in ("train", "test"))
    assert one.prompt != other.prompt and one.reference.count(", ") == 2
