"""Looks at the files of a model's folder before transformers does, which passes over some damage or never ends.

And keeps it from drawing progress bars for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.utils import logging as bars

from rlgkd.errors import ModelError, one_line
from rlgkd.file_kinds import other_kind

OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files that hold names and values in JSON. transformers goes on without a generation_config that it cannot read."""
INDEX = ".safetensors.index.json"
MAX_HEADER = 10**8
"""Bytes of the header of a safetensors file, as that library limits them."""


@contextmanager
def without_bars() -> Iterator[None]:
    """Draw no progress bars of transformers: files of this machine take seconds, and bars break a live line."""
    shows = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            bars.enable_progress_bar()


def check_files(name: str, folder: Path) -> None:
    """Check the files of the model called `name`.

    Raises: ModelError for a pipe or a device, which would be read and never end; JSON that is damaged; weights in other
        formats; weights in whole numbers without a quantization_config, which would be cast as they are.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and (kind := other_kind(path)) and not path.is_dir():
            raise ModelError("model", name, f"its {path.name} is {kind}, not a file; copy it again")
        if path.name in OBJECTS:
            _json_object(name, path)
        elif path.name.endswith(".safetensors"):
            _check_numbers(name, path)
        elif path.name.endswith(INDEX):
            named = _json_object(name, path).get("weight_map")
            if not isinstance(named, dict) or not named:
                raise ModelError("model", name, f"its {path.name} names no files; copy it again")
            # transformers would open what is named here as a pickle if it does not end so.
            if other := [str(file) for file in named.values() if not re.fullmatch(r"[\w.-]+\.safetensors", str(file))]:
                raise ModelError("model", name, f"its {path.name} names {other[0]!r}, and only safetensors are read")


def _json_object(name: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        remedy = f"its {path.name} could not be read ({one_line(error, 200)}); copy it again"
        raise ModelError("model", name, remedy) from error
    if not isinstance(found, dict):
        raise ModelError("model", name, f"its {path.name} holds no names and values; copy it again")
    return found


def _check_numbers(name: str, path: Path) -> None:
    header: Any = {}
    config: Any = {}
    with suppress(OSError, ValueError):  # damage is reported when it is opened
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= MAX_HEADER else {}
        config = json.loads((path.parent / "config.json").read_bytes())
    if not isinstance(header, dict) or not isinstance(config, dict) or "quantization_config" in config:
        return
    for weight, part in header.items():
        if isinstance(part, dict) and part.get("dtype") in ("I8", "U8") and len(part.get("shape", ())) > 1:
            remedy = f"its weight {weight} is in 8-bit whole numbers, and its config.json has no quantization_config"
            raise ModelError("model", name, f"{remedy}; give the model in float16, bfloat16 or float32")
