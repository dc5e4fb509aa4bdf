"""Settings as classes: what a study reads of study.yaml and of common/settings.yaml, with a name and a type
for every value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.errors import UserError


class Settings(BaseModel):
    """A section of settings. It refuses names that it does not know, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The section that ``values``, read from YAML, describe. UserError that names field and value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = (
                f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}: {problem['msg']}"
                for problem in error.errors()
            )
            raise UserError("\n".join(problems)) from None
