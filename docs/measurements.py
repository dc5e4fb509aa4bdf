"""Figures that no command of the pipeline keeps: docs/measurements.yaml.

Timings, runs with other parameters, comparisons on other machines. Each entry says what was measured, how
often, when, on what and by which command; one that cannot say so has no place in a text.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML

from offramp.errors import UserError

PATH = "docs/measurements.yaml"
"""Relative to the root of the repository."""

Said = Annotated[str, Field(min_length=1)]


class Measured(BaseModel):
    """A value with its 95 % interval."""

    model_config = ConfigDict(extra="forbid")

    value: float
    low: float
    high: float


class Measurement(BaseModel):
    """Values that were measured together."""

    model_config = ConfigDict(extra="forbid")

    what: Said
    values: Annotated[dict[str, int | float | list[int | float] | Measured], Field(min_length=1)]
    """Numbers by name; a list has one per run."""
    n: Annotated[int, Field(ge=1)]
    """Runs behind every value."""
    date: date
    machine: Said
    command: Said
    commit: str | None = None
    """Of the code that was measured, where it is known."""


def read_measurements(root: Path) -> dict[str, Measurement]:
    """All entries by name. Raises UserError for a file that is missing or an entry that says too little."""
    path = root / PATH
    try:
        entries = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
        return TypeAdapter(dict[str, Measurement]).validate_python(entries)
    except FileNotFoundError:
        raise UserError(f"{PATH} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{PATH}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
