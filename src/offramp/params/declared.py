"""What a stage sees of the parameters: those that dvc.yaml declares for it."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

from offramp.params.schema import Params
from offramp.params.sections import Section

OF_NO_RESULT = ("runtime", "tracking")
"""Sections that every stage may read, since no result hangs on them."""


class Declared:
    """A stage's view of the parameters: reading one that dvc.yaml does not declare for it is an error.

    Its sections are the sections of Params, so that functions which take a section are given one.
    """

    def __init__(self, stage: str, params: Params, declared: list[str]):
        self._stage, self._params, self._declared = stage, params, declared

    def __getattr__(self, section: str) -> Any:
        value = getattr(self._params, section)
        if section in (*self._declared, *OF_NO_RESULT):
            return value
        if any(path.startswith(section + ".") for path in self._declared):
            return _declared_part(value, self._stage, self._declared, section + ".")
        raise AttributeError(_undeclared(self._stage, section))

    def to_json(self) -> dict[str, Any]:
        """The declared parameters as plain values, by dotted name: what goes into an artifact's manifest.

        Not ``runtime`` and ``tracking``, which are no part of a result's identity.
        """
        out = {}
        for path in self._declared:
            value: Any = self._params
            for name in path.split("."):
                value = getattr(value, name)
            out[path] = value.model_dump() if isinstance(value, BaseModel) else value
        return out


def _declared_part(section: Section, stage: str, declared: list[str], prefix: str) -> Section:
    """A section with only those fields that ``stage`` declares; reading another raises AttributeError."""

    def refuse(_: Section, name: str) -> Any:
        raise AttributeError(_undeclared(stage, prefix + name))

    namespace = {"__getattr__": refuse, "__module__": __name__}
    view = cast(type[Section], type(type(section).__name__, (type(section),), namespace))
    fields: dict[str, Any] = {}
    for name in type(section).model_fields:
        path, value = prefix + name, getattr(section, name)
        if path in declared:
            fields[name] = value
        elif any(other.startswith(path + ".") for other in declared):
            fields[name] = _declared_part(value, stage, declared, path + ".")
    return view.model_construct(**fields)


def _undeclared(stage: str, path: str) -> str:
    return f"stage {stage} reads parameter {path}, which dvc.yaml does not declare for it"
