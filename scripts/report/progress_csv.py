"""The table of progress.csv and times.csv as text: RFC 4180, a row for each update, each row as long as the header.

Not here: appending to the files of a run that trains (rlgkd.scripts.runs.recorder).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise

GROUPS = ("rollout/", "time/", "train/", "agreement/")
"""What the name of a column begins with."""
PART = "rollout/reward/"
"""What the column of a reward's part begins with; the rest is the user's own name."""


def read_table(text: str) -> tuple[list[str], list[list[str]]]:
    r"""Return the columns' names and the rows, which are filled with empty values, or cut, to the header's length.

    Files of older versions have the names of a reward's parts without quotes: what follows one and begins with no group
    is the rest of a name with a comma. A resumed run of these versions wrote an empty value for each piece of it.

    Raises: csv.Error if the text is not CSV.

    Examples:
        >>> read_table('rollout/reward/right, exact,train/loss\n0.5,2.0\n')
        (['rollout/reward/right, exact', 'train/loss'], [['0.5', '2.0']])
    """
    header, *rows = list(csv.reader(io.StringIO(text.replace("\0", ""), newline=""))) or [[]]
    starts: list[int] = []
    for number, piece in enumerate(header):
        if piece.startswith(GROUPS) or not starts or not header[starts[-1]].startswith(PART):
            starts.append(number)
    names = [",".join(header[start:end]) for start, end in pairwise([*starts, len(header)])]
    if len(names) < len(header):
        rows = [[row[start] for start in starts] if len(row) == len(header) else row for row in rows]
    return names, [[*row, *[""] * (len(names) - len(row))][: len(names)] for row in rows]


def write_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the text of a table, as `read_table` reads it."""
    return write_rows([names, *rows])


def write_rows(rows: Iterable[Sequence[str]]) -> str:
    """Return rows without a header."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
