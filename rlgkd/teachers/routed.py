"""Several teachers of which each text has one: the one that a column of its item names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from rlgkd.errors import DataError
from rlgkd.lm.model import LanguageModel
from rlgkd.types import Item

DEFAULT = "default"
"""The name of the teacher of items whose column is missing or null."""


@dataclass(frozen=True)
class RoutedTeachers:
    """Teachers by name."""

    models: Mapping[str, LanguageModel]
    """Equal models are one object."""
    column: str
    """The column of an item that names its teacher."""

    @property
    def distinct(self) -> list[LanguageModel]:
        """Each model once."""
        return list({id(lm): lm for lm in self.models.values()}.values())

    @property
    def module(self) -> nn.Module:
        """All their weights."""
        return nn.ModuleList([lm.module for lm in self.distinct])

    def name_of(self, item: Item) -> str:
        """The name of an item's teacher.

        Raises: DataError for a name that no teacher has, or an item that names none where there is no default.
        """
        value = item.columns.get(self.column)
        name = DEFAULT if value is None else str(value)
        if name in self.models:
            return name
        what = "names none" if value is None else f"names {name!r}"
        add = f"give one of the name {name}" if value is not None else f"fill the column in, or give a {DEFAULT}"
        raise DataError(
            "teacher_column", self.column, f"{item.key} {what} of the teachers {', '.join(self.models)}; {add}"
        )

    def of(self, item: Item) -> LanguageModel:
        """The teacher of an item. Raises: DataError as `name_of`."""
        return self.models[self.name_of(item)]

    def parts(self, items: Sequence[Item]) -> list[tuple[LanguageModel, list[int]]]:
        """Each model that some of the items have as their teacher, once, and which these are."""
        return [(lm, rows) for lm in self.distinct if (rows := self.rows_of(lm, items))]

    def rows_of(self, lm: LanguageModel, items: Sequence[Item]) -> list[int]:
        """Which of the items have this model as their teacher."""
        return [row for row, item in enumerate(items) if self.of(item) is lm]
