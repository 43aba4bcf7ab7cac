"""Objects named by an import path, `package.module:name` or `folder/file.py:name`."""

from __future__ import annotations

import importlib
import operator
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from rlgkd.errors import SettingError, one_line


def import_object(field: str, path: str) -> Any:
    """Return the object that an import path names; `field` is the setting that holds the path.

    A file is imported under the name that Python would give it: its folder, or the folder of its package, is put first
    on Python's path. The grad mode, default dtype and default device of torch stay as they were.

    Raises: SettingError if it cannot be imported.
    """
    from rlgkd.global_state import restored_modes  # imports torch, which a name that is no path does not need

    module, _, name = (part.strip() for part in path.rpartition(":"))
    if not module.endswith(".py") and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module):
        raise SettingError(field, path, "give an import path: package.module:name or folder/file.py:name")
    try:
        with restored_modes():
            imported = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
        return operator.attrgetter(name)(imported)
    except SystemExit as error:
        raise SettingError(field, path, f"importing it ended Python (SystemExit: {error.code})") from error
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise SettingError(field, path, f"it could not be imported: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the module's own code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {one_line(error, 200)} ({frame.filename}:{frame.lineno})"
        raise SettingError(field, path, f"it could not be imported: {failure}") from error


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
