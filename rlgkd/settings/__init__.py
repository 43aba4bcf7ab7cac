"""Settings: declared once, typed and checked; nested inside, one flat list of names outside.

A setting is a field of a `Settings` class (base.py): its type with its range, its default, and the sentence under it.
Groups are fields that are `Settings` themselves. Constructors, YAML files and `key=value` on the command line see flat
names alone, and two kinds of fields have several of them (fields.py):

    Registered   `divergence: jsd` and `beta: 0.9`: a function by its name, with parameters of its own
    Scheduled    `alpha: 1`, `alpha_end: 0` and `alpha_shape: cosine`: a number that may move during training

A class is built from flat names, `Objective(divergence="jsd", beta=0.9)`, and `flat()` gives them back. A value that
does not work is refused in one line, with the field, the value and what would work, wherever it was given.
"""

from rlgkd.settings.argument_types import checked_arguments
from rlgkd.settings.base import Settings, layered, marks
from rlgkd.settings.fields import REQUIRED, Declared, Moving, Registered, Scheduled, Variant, arguments_of, span

__all__ = [
    "REQUIRED",
    "Declared",
    "Moving",
    "Registered",
    "Scheduled",
    "Settings",
    "Variant",
    "arguments_of",
    "checked_arguments",
    "layered",
    "marks",
    "span",
]
