"""What files of results have in common: a class each that knows its names, for reading and writing.

A ``MetricsFile`` is one JSON file in metrics/, a ``TableRow`` is one row of a CSV file in metrics/plots; both
know where under the project's folder their file lies. Reading is strict: a file that is missing, unreadable
or of another shape is a UserError that names it, the field and the remedy. Writing leaves out the keys that
were not given: a field that may be absent has the default None, one that is always there and may be null has
none.

The classes stand in a module per stage, so that a stage depends on the shape of what it writes and of nothing
else.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.artifacts.files import write_csv, write_json
from offramp.errors import UserError

Value = TypeVar("Value")
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""[low, high]"""


def exit_key(exit: int) -> str:
    """The key under which the files keep what belongs to an exit."""
    return f"exit_{exit}"


def by_exit(values: Mapping[str, Value]) -> list[Value]:
    """The values of the keys ``exit_0``, ``exit_1``, ..., in the order of the exits."""
    return [values[exit_key(exit)] for exit in range(len(values))]


class Record(BaseModel):
    """Named values that are checked when they are put together and do not change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the keys that were not given."""
        return self.model_dump(exclude_unset=True)


class MetricsFile(Record):
    """One JSON file in metrics/."""

    path: ClassVar[str]
    """Relative to the project's folder."""

    @classmethod
    def read(cls, root: Path) -> Self:
        """The file of the project in ``root``; UserError where it is missing or of another shape."""
        file = root / cls.path
        try:
            return cls.model_validate_json(file_text(file))
        except ValidationError as error:
            raise ill_shaped(file, error) from None

    @classmethod
    def read_if_there(cls, root: Path) -> Self | None:
        """The same, or None before the stage that writes the file has run."""
        return cls.read(root) if (root / cls.path).is_file() else None

    def write(self, root: Path) -> None:
        """Write the file of the project in ``root``; UserError for a number that is not finite."""
        values = self.to_json()
        if field := _not_finite(values):
            raise UserError(
                f"{self.path}: {field} is no finite number, so nothing was written: what it was computed of "
                "is too large, too small or all alike; give more text, or train with a lower learning rate"
            )
        write_json(root / self.path, values)


class TableRow(Record):
    """One row of a CSV file in metrics/plots; the fields are its columns, an empty cell is None."""

    path: ClassVar[str]
    """Relative to the project's folder."""

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """All columns in their order, also those that may be absent."""
        return tuple(cls.model_fields)

    @classmethod
    def read(cls, root: Path) -> list[Self]:
        """The rows of the project in ``root``; UserError where the file is missing or of another shape."""
        file = root / cls.path
        try:
            table = list(csv.reader(file_text(file).splitlines(), strict=True))
        except csv.Error:
            table = []
        if not table:
            raise _damaged(file, "is not a CSV table")
        names, *lines = table
        required = [name for name, field in cls.model_fields.items() if field.is_required()]
        if missing := [name for name in required if name not in names]:
            raise _damaged(file, f"has no column {', '.join(missing)}")
        rows = []
        for number, cells in enumerate(lines, 2):
            if len(cells) != len(names):
                raise _damaged(file, f"has {len(cells)} cells in line {number} and {len(names)} columns")
            values = {
                name: cell if cell or not _may_be_none(cls, name) else None
                for name, cell in zip(names, cells)
            }
            try:
                rows.append(cls.model_validate(values, strict=False))
            except ValidationError as error:
                raise ill_shaped(file, error, f"line {number}, ") from None
        return rows

    @classmethod
    def write(cls, root: Path, rows: Iterable[Self]) -> None:
        """Write the file of the project in ``root`` as a whole."""
        cls.write_to(root / cls.path, rows)

    @classmethod
    def write_to(cls, file: Path, rows: Iterable[Self]) -> None:
        """Write the table to another file; columns that no row was given are left out."""
        records = [row.to_json() for row in rows]
        given = {name for record in records for name in record}
        columns = [name for name, field in cls.model_fields.items() if field.is_required() or name in given]
        write_csv(file, columns, records)


def _may_be_none(row: type[TableRow], column: str) -> bool:
    field = row.model_fields.get(column)
    return field is not None and NoneType in get_args(field.annotation)


def _not_finite(values: Any, name: str = "") -> str | None:
    """The dotted name and value of the first number that is not finite; None where all are."""
    if isinstance(values, float):
        return None if math.isfinite(values) else f"{name} = {values}"
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        fields = (_not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in items)
        return next(filter(None, fields), None)
    return None


def file_text(file: Path) -> str:
    """The contents of a file of results; UserError where it is missing or no text."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; run `dvc repro` to make it") from None
    except UnicodeDecodeError:
        raise _damaged(file, "is not a text file") from None


def ill_shaped(file: Path, error: ValidationError, place: str = "") -> UserError:
    """What to say of a file that does not hold what its class asks for."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return _damaged(file, "is not valid JSON")
    field = ".".join(map(str, problem["loc"])) or "its contents"
    more = f" ({error.error_count() - 1} more like it)" if error.error_count() > 1 else ""
    return _damaged(file, f"has another shape than expected: {place}{field}: {problem['msg']}{more}")


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} {what}; delete it and run `dvc repro` to make it again")
