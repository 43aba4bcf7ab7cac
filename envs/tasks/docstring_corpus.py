"""The docstrings of installed Python packages and of the standard library, read from their sources.

Sources are parsed, never imported. Which docstrings there are depends on what is installed in which version, and on
nothing else. No text and no file is in two splits.

Left out: docstrings made at run time (`torch.add_docstr`, `numpy.add_newdoc`), and more than `MAX_BYTES` of source from
one package.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

from rlgkd.envs.tasks.docstring_parser import parse_docstring, words_of

STANDARD_LIBRARY = "stdlib"
"""Stands for the standard library among the names of packages."""
SPLITS = ("train", "validation", "test")
MAX_BYTES = 2_000_000
"""Source read from one package, in files drawn by hash: torch or transformers alone would take a minute to parse."""
BYTES_PER_DOCSTRING = 6_000
"""A file with less than one promising docstring in so many bytes is skipped."""

_SPLIT_OF_TENTH = ("train",) * 8 + ("validation", "test")
_SKIPPED = {"_vendor", "externals", "idlelib", "lib2to3", "site-packages", "test", "testing", "tests", "vendored"}
_PROMISING = re.compile(rb"\"\"\"\s*[A-Z][^\n]{12,}\n[ \t]*\n?[ \t]+[A-Z`:][^\n]{20}")


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """The first line of a docstring and the prose that follows it."""

    module: str
    """Dotted path of the file."""
    name: str
    """Qualified name inside the module."""
    summary: str
    body: str

    @property
    def key(self) -> str:
        """`module:name`, unique."""
        return f"{self.module}:{self.name}"

    @property
    def split(self) -> str:
        """The split of the file: 8 of 10 files are in train, one in validation, one in test."""
        return _SPLIT_OF_TENTH[crc32(self.module.encode()) % len(_SPLIT_OF_TENTH)]


@lru_cache(maxsize=4)
def docstrings(packages: tuple[str, ...]) -> tuple[Docstring, ...]:
    """Return all docstrings that are fit to be items, sorted by module and name; read once in a process.

    Of docstrings with the same summary, the same body or the same first ten words of it (inherited and adapted copies)
    only the first is kept, so none is in two splits.
    """
    read = {docstring.key: docstring for package in packages for docstring in _read_package(package)}
    seen: set[tuple[str, ...]] = set()
    kept = []
    for docstring in sorted(read.values(), key=lambda d: (d.module, d.name)):
        words = words_of(docstring.body)
        marks = {("summary", *words_of(docstring.summary)), ("body", *words), ("opening", *words[:10])}
        if not marks & seen:
            kept.append(docstring)
        seen |= marks
    return tuple(kept)


def _read_package(package: str) -> Iterator[Docstring]:
    """The docstrings of a package's files, in the order of a hash of their paths until MAX_BYTES are read."""
    root, prefix = _root(package)
    if root is None:
        return
    files = {".".join((*prefix, *path.relative_to(root).with_suffix("").parts)): path for path in _python_files(root)}
    total = 0
    for module, path in sorted(files.items(), key=lambda file: (crc32(file[0].encode()), file[0])):
        try:
            source = path.read_bytes()
        except OSError:
            continue
        if len(_PROMISING.findall(source)) * BYTES_PER_DOCSTRING < len(source):
            continue  # too few docstrings with prose to be worth the time to parse
        total += len(source)
        if total > MAX_BYTES:
            return
        yield from _read_file(module.removesuffix(".__init__"), source)


def _root(package: str) -> tuple[Path | None, tuple[str, ...]]:
    """The package's folder, found without importing it (None: not installed), and the prefix of its modules' names."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib")), ()
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return (Path(folders[0]), (package,)) if folders else (None, ())


def _python_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.suffix == ".py":
            yield entry
        elif entry.name.isidentifier() and entry.name not in _SKIPPED and entry.is_dir() and not entry.is_symlink():
            yield from _python_files(entry)


def _read_file(module: str, source: bytes) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escape sequences
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for name, node in _public_definitions(tree):
        parsed = parse_docstring(ast.get_docstring(node) or "")
        if parsed is not None:
            summary, body = parsed
            yield Docstring(module=module, name=name, summary=summary, body=body)


def _public_definitions(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions, classes and the public methods of these, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from _public_definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):  # definitions that depend on the platform
            yield from _public_definitions(node, prefix)
