"""Objects named by an import path, `package.module:name` or `folder/file.py:name`."""

from __future__ import annotations

import importlib
import operator
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rlgkd.errors import SettingError, one_line


def import_object(field: str, path: str) -> Any:
    """Return the object that an import path names; `field` is the setting that holds the path.

    A file is imported under the name that Python would give it: its folder, or the folder of its package, is put first
    on Python's path.

    Raises: SettingError if it cannot be imported.
    """
    module, _, name = path.rpartition(":")
    try:
        imported = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module.strip())
        return operator.attrgetter(name.strip())(imported)
    except SystemExit as error:
        raise SettingError(field, path, f"importing it ended Python (SystemExit: {error.code})") from error
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise SettingError(field, path, f"it could not be imported: {one_line(error)}") from error
    except Exception as error:  # whatever the module does when it is imported
        why = f"{type(error).__name__}: {one_line(error, 200)}"
        raise SettingError(field, path, f"it could not be imported: {why}") from error


def is_import_path(text: str) -> bool:
    """Whether a text has the form of an import path: `package.module:name` or `folder/file.py:name`."""
    return re.fullmatch(r"([\w.]+|.+\.py):[\w.]+", text) is not None


def _import_file(file: Path) -> ModuleType:
    """The file as a module, so that imports of other modules in its folder and in its package work."""
    file = file.expanduser().resolve()
    if not file.is_file():
        raise ImportError(f"there is no file {file}")
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    if Path(module.__file__ or "").resolve() != file:
        raise ImportError(f"Python has another module {name!r} ({module.__file__}); rename the file")
    return module
