"""What is imported when: nothing heavy by rlgkd, no Stable-Baselines3 by rlgkd.envs; items are the same elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from rlgkd.envs import ListItems
from rlgkd.types import Item

PROBE = """
import json, sys
import rlgkd
light = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "stable_baselines3"})
import rlgkd.envs
without_sb3 = "stable_baselines3" not in sys.modules
from rlgkd.envs import ListItems
from rlgkd.types import Item
items = ListItems({split: [Item(key=str(n), prompt=str(n)) for n in range(9)] for split in ("train", "test")})
drawn = [items.item(split, seed, n).key for split in ("train", "test") for seed in (0, 7) for n in range(30)]
print(json.dumps([light, without_sb3, drawn]))
"""


@pytest.fixture(scope="module")
def elsewhere() -> list[Any]:
    """What another process says, with another hash seed: heavy modules, items."""
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def numbered(size: int, *splits: str) -> ListItems:
    items = [Item(key=str(n), prompt=f"prompt {n}") for n in range(size)]
    return ListItems(dict.fromkeys(splits or ("train", "validation", "test"), items))


def test_importing_rlgkd_imports_no_torch_no_transformers_no_sb3(elsewhere: list[Any]) -> None:
    assert elsewhere[0] == []


def test_importing_the_environments_imports_no_sb3_until_it_is_asked_for(elsewhere: list[Any]) -> None:
    assert elsewhere[1] is True


def test_every_exported_name_is_there_and_an_unknown_one_is_an_attribute_error() -> None:
    import rlgkd.envs

    assert all(getattr(rlgkd.envs, name) is not None for name in rlgkd.envs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'make_sb4_vec_env'"):
        _ = rlgkd.envs.make_sb4_vec_env  # type: ignore[attr-defined]


def test_the_same_seed_and_index_give_the_same_item_in_another_process(elsewhere: list[Any]) -> None:
    items = numbered(9)
    assert elsewhere[2] == [items.item(s, seed, n).key for s in ("train", "test") for seed in (0, 7) for n in range(30)]
