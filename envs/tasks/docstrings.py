"""rlgkd/DocstringSummary-v0: the first line of a docstring, written from the rest of it. Real text with no download.

The items are the public functions, classes and methods of the standard library and of installed packages: the prompt
is the docstring's prose without its first line, the reference that first line, the reward ROUGE-L against it. Sources
are parsed, never imported. Which items there are depends on what is installed in which version; given that, on nothing
else. No text and no file is in two splits.

Left out: parameter tables, examples, notes and whatever else follows the prose; docstrings made at run time
(`torch.add_docstr`, `numpy.add_newdoc`); more than `MAX_BYTES` of source from one package.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from zlib import crc32

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.sources import ListItems
from rlgkd.envs.rewards import rouge
from rlgkd.envs.task import TextTask
from rlgkd.errors import DataError
from rlgkd.lm.loading import load_tokenizer
from rlgkd.types import Item

STANDARD_LIBRARY = "stdlib"
PACKAGES = (
    STANDARD_LIBRARY, "accelerate", "click", "fsspec", "gymnasium", "huggingface_hub", "jinja2", "joblib", "matplotlib",
    "mpmath", "networkx", "nltk", "numpy", "packaging", "pandas", "PIL", "pydantic", "requests", "rich", "sacrebleu",
    "scipy", "setuptools", "stable_baselines3", "sympy", "tensorboard", "torch", "tqdm", "transformers", "typer",
    "urllib3", "werkzeug",
)  # fmt: skip
"""What rlgkd depends on, directly or not, and the standard library; those that are not installed are passed over."""

MAX_BYTES = 2_000_000
"""Source read from one package, in files drawn by hash: torch or transformers alone would take a minute to parse."""
BYTES_PER_DOCSTRING = 6_000
"""A file with less than one promising docstring in so many bytes is passed over."""
SUMMARY_WORDS = (3, 20)
BODY_WORDS = (12, 56)
"""The leading prose paragraphs, as many as fit; one whose first paragraph does not fit is passed over."""
MAX_PROMPT_TOKENS = 112
MAX_NEW_TOKENS = 32

_SPLITS = ("train",) * 8 + ("validation", "test")
_SKIPPED = {"_vendor", "externals", "idlelib", "lib2to3", "site-packages", "test", "testing", "tests", "vendored"}
_PROMISING = re.compile(rb"\"\"\"\s*[A-Z][^\n]{12,}\n[ \t]*\n?[ \t]+[A-Z`:][^\n]{20}")
_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?|Warnings?|See [Aa]lso)\s*:")
_MARKUP = re.compile(r"[\\$<>{}|@]|::|:\w+:|://")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """What is documented where, its first line and the prose behind it."""

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
        """All of a file is in one split: 8 of 10 files in train, one in validation, one in test."""
        return _SPLITS[crc32(self.module.encode()) % len(_SPLITS)]


class DocstringItems(ListItems):
    """The items whose prompt and reference keep to the task's limits; `dropped` counts the others, by split.

    Validation and test are read from the front: a hash of the keys orders them, so that any beginning is a fair draw.
    """

    def __init__(
        self,
        packages: Sequence[str],
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        max_new_tokens: int,
    ) -> None:
        """Read the packages and keep what fits.

        Raises: DataError if a split is empty.
        """
        splits: dict[str, list[Item]] = {split: [] for split in dict.fromkeys(_SPLITS)}
        self.dropped = dict.fromkeys(splits, 0)
        measure = TextTask(prompts=["-"], reward=_unused, tokenizer=tokenizer, chat=True, max_prompt_tokens=2**31)
        for docstring in sorted(docstrings(tuple(packages)), key=lambda d: (crc32(d.key.encode()), d.key)):
            item = item_of(docstring)
            asked, wanted = len(measure.encode_prompt(item)), len(measure.encode_completion(item.reference))
            if asked <= max_prompt_tokens and wanted <= max_new_tokens:
                splits[docstring.split].append(item)
            else:
                self.dropped[docstring.split] += 1
        if empty := [split for split, items in splits.items() if not items]:
            raise DataError(
                "packages", list(packages),
                f"no docstring in them fits {' and '.join(empty)}; name installed packages with their sources, "
                f"or raise max_prompt_tokens, now {max_prompt_tokens}, or max_new_tokens, now {max_new_tokens}",
            )  # fmt: skip
        counts = {split: len(items) for split, items in splits.items()}
        _log.info("docstrings: kept %s; over the token limits, dropped: %s", counts, self.dropped)
        super().__init__(splits)


def docstring_summary(
    *,
    tokenizer: str | PreTrainedTokenizerBase = "smollm2-135m",
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
    packages: Sequence[str] = PACKAGES,
) -> TextTask:
    """The first line of a docstring of the installed Python libraries, from its body; the reward is ROUGE.

    Args:
        tokenizer: A model's name or a loaded tokenizer; it must have a chat template.
        max_new_tokens: Length limit of a completion; an item whose reference is longer is dropped.
        max_prompt_tokens: Length limit of a prompt, template included; an item with a longer one is dropped.
        packages: Importable top-level names, and `stdlib`.

    Raises: DataError if a split is empty; SettingError without a chat template; DependencyError if rouge-score or the
    package of `smollm2-135m` is not installed.
    """
    reward = rouge("rougeL")
    opened = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    return TextTask(
        name="DocstringSummary",
        prompts=DocstringItems(
            packages, tokenizer=opened, max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens
        ),
        reward=reward,
        tokenizer=opened,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        chat=True,
        quality=quality,
    )


def item_of(docstring: Docstring) -> Item:
    """The prompt names the function, class or method: a body alone often does not say what it is about."""
    return Item(
        key=docstring.key,
        prompt=f"Summarize `{docstring.name}` in one line:\n{docstring.body}",
        reference=docstring.summary,
        columns={"body": docstring.body, "module": docstring.module},
    )


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """Each in [0, 1]: `rouge2`; `copied`, the share of the completion's word pairs that stand in the body; `sentence`.

    `sentence` is 1 for a single line that ends in a period.
    """
    overlaps = rouge("rouge2")(completions, [item.reference for item in items])
    measures = []
    for item, completion, overlap in zip(items, completions, overlaps, strict=True):
        written, given = _pairs(completion), set(_pairs(str(item.columns["body"])))
        measures.append({
            "rouge2": overlap,
            "copied": sum(pair in given for pair in written) / max(len(written), 1),
            "sentence": float("\n" not in completion and completion.endswith(".")),
        })  # fmt: skip
    return measures


@lru_cache(maxsize=4)
def docstrings(packages: tuple[str, ...]) -> tuple[Docstring, ...]:
    """All that are fit to be items, sorted by module and name; read once in a process.

    Of those that share their summary, their body or its first ten words (inherited and adapted copies) only the first
    stays, so none is in two splits.
    """
    read = {docstring.key: docstring for package in packages for docstring in _read_package(package)}
    seen: set[tuple[str, ...]] = set()
    kept = []
    for docstring in sorted(read.values(), key=lambda d: (d.module, d.name)):
        words = _words(docstring.body)
        marks = {("summary", *_words(docstring.summary)), ("body", *words), ("opening", *words[:10])}
        if not marks & seen:
            kept.append(docstring)
        seen |= marks
    return tuple(kept)


def parse_docstring(text: str) -> tuple[str, str] | None:
    """Summary and body of a cleaned docstring, or None if it is not fit to be an item.

    Example:
        >>> parse_docstring('''Return the mean of the values.
        ...
        ... The values are added up with extended precision and divided by how many
        ... there are; an empty sequence is an error.
        ...
        ... Args:
        ...     values: The numbers.
        ... ''')
        ('Return the mean of the values.', 'The values are added up with ... an empty sequence is an error.')
    """
    first, *blocks = re.split(r"\n\s*\n", text.strip())
    if not blocks and "\n" not in first:
        return None
    if re.fullmatch(r"[\w.]+\(.*\)(\s*->.*)?", first) and blocks:  # a signature, as C functions have
        first, *blocks = blocks
    summary, rest = _first_sentence(first)
    summary = _plain(summary)
    if not re.fullmatch(r"[A-Z][\w ,;:'\"()/.-]*", summary) or not _between(_words(summary), SUMMARY_WORDS):
        return None
    summary = summary if summary.endswith(".") else f"{summary}."
    body = " ".join(_prose([rest, *blocks] if rest else blocks))
    if not _between(_words(body), BODY_WORDS) or " ".join(_words(summary)) in " ".join(_words(body)):
        return None
    return summary, body


def _first_sentence(paragraph: str) -> tuple[str, str]:
    """The first line or, where its sentence goes on behind it, that sentence; and the rest of the paragraph."""
    line, _, rest = paragraph.partition("\n")
    if not rest or line.rstrip().endswith("."):
        return line, rest
    sentence, end, rest = paragraph.partition(". ") if ". " in paragraph else paragraph.partition(".\n")
    return sentence + end.rstrip(), rest


def _prose(blocks: Sequence[str]) -> Iterator[str]:
    """The leading paragraphs of plain prose that fit into BODY_WORDS; a version note between them is passed over."""
    total = 0
    for block in blocks:
        lines = block.splitlines()
        if re.match(r"\.\. (versionadded|versionchanged|deprecated)::|(Explanation|Description)$", lines[0]):
            continue
        heading = len(lines) > 1 and re.fullmatch(r"[-=~^*+#]{3,}\s*", lines[1])
        indented = any(line != line.lstrip() for line in lines)
        if heading or indented or not re.match(r"[\w`*\"(]", lines[0]) or _SECTION.match(lines[0]):
            return
        paragraph = _plain(re.sub(r"\s*\[\w+\]_", "", " ".join(lines)))  # without marks of footnotes
        total += len(_words(paragraph))
        if total > BODY_WORDS[1] or not re.search(r"[.!?][)\"']?$", paragraph) or _MARKUP.search(paragraph):
            return
        yield paragraph


def _plain(text: str) -> str:
    """Without RST and Markdown marks: roles, links, emphasis and quotes of code keep their text alone."""
    text = re.sub(r":(?:\w+:)+`[~!.]?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_+", r"\1", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    text = re.sub(r"\[`([^`]+)`\]", r"\1", text)
    text = re.sub(r"(`+)([^`]+)\1_*", r"\2", text)
    text = re.sub(r"(?<![\w.)])(~\.?|\.)(?=[A-Za-z]\w+)", "", text)  # `~.Figure` in Matplotlib
    text = re.sub(r"(?<!\w)(\*{1,2})(\w[^*]*?)\1(?!\w)", r"\2", text)
    return " ".join(text.split())


def _read_package(package: str) -> Iterator[Docstring]:
    """The docstrings of a package's files, drawn by the hash of their path until MAX_BYTES are read."""
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
            continue  # too few first lines with prose behind them to be worth the time to parse
        total += len(source)
        if total > MAX_BYTES:
            return
        yield from _read_file(module.removesuffix(".__init__"), source)


def _root(package: str) -> tuple[Path | None, tuple[str, ...]]:
    """The folder that holds the package, found without importing it, and what its modules' names begin with."""
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
    for name, node in _public(tree):
        parsed = parse_docstring(ast.get_docstring(node) or "")
        if parsed is not None:
            summary, body = parsed
            yield Docstring(module=module, name=name, summary=summary, body=body)


def _public(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions, classes and the public methods of these, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from _public(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):  # definitions that depend on the platform
            yield from _public(node, prefix)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _pairs(text: str) -> list[tuple[str, str]]:
    words = _words(text)
    return list(pairwise(words))


def _between(words: Sequence[str], limits: tuple[int, int]) -> bool:
    return limits[0] <= len(words) <= limits[1]


def _unused(completions: Sequence[str]) -> list[float]:
    """Stands where a task that only counts tokens must have a reward."""
    return [0.0] * len(completions)
