"""The shape of a manifest, and reading one that may be anything: damaged, edited, or no file at all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from offramp.errors import UserError

SCHEMA = 2
MANIFEST = "manifest.json"
MOST_BYTES = 2**26
"""Half a million files have room in that."""
MOST_LEVELS = 16
"""Of lists and mappings within each other; parameters have four."""


def _inside(name: str) -> str:
    """A file's name that stays in its artifact."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name:
        raise ValueError("is no path below the artifact's folder")
    return name


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Nothing is converted and nothing else is allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(Strict):
    """What is recorded of a file."""

    bytes: Count
    sha256: Digest


class Manifest(Strict):
    """What ``manifest.json`` holds."""

    version: Literal[2] = Field(alias="schema")
    kind: str
    meta: dict[str, Any]
    params: dict[str, Any]
    inputs: dict[str, Digest]
    made_with: dict[str, str]
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    digest: Digest


class SplitCounts(Strict):
    """What a data artifact says of a split."""

    documents: Count
    characters: Count
    tokens: Count
    windows: Count
    unknown_rate: Annotated[float, Field(ge=0, le=1)]


_META: dict[str, dict[str, Any]] = {
    "data": {
        "dtype": Literal["uint16", "uint32"],
        "vocab_size": Size,
        "window": Size,
        "end_id": Count | None,
        "unknown_id": Count | None,
        "kind": Literal["bpe", "word", "char", "pretrained"],
        "splits": dict[Literal["train", "calibration", "test"], SplitCounts],
        "stop_ids": list[Count],
    },
    "lm": {"parameters": Count, "hardness_thresholds": list[float]},
    "states": {
        "exits": Size,
        "tokens": Size,
        "shards": Size,
        "window": Size,
        "width": Size,
        "vocab_size": Size,
        "dtype": Literal["float16", "float32"],
        "precision": Literal["fp32", "bf16"],
    },
    "exits": {"lm": Digest, "precision": Literal["fp32", "bf16"], "exits": Size, "width": Size},
}
"""Of each kind: the types of what its readers look up in ``meta``; ``Meta`` names what is missing."""


class Meta(dict[str, Any]):
    """The free-form metadata of an artifact; asking for what is not there is a UserError that names it."""

    def __init__(self, values: dict[str, Any], path: Path):
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._path / MANIFEST} does not say meta.{key}; {remedy(self._path)}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the artifact in ``folder``, of the right shape and with the digest of its contents.

    UserError, naming file, field and remedy, for anything else: a missing file, a pipe, a device or a folder
    in its place, more than MOST_BYTES, deeper nesting than MOST_LEVELS, another schema, an edited one.
    """
    file = folder / MANIFEST
    values = _parsed(_contents(file, folder), file, folder)
    if values.get("schema") != SCHEMA:
        schema = str(values.get("schema"))[:40]
        raise UserError(f"{folder} holds schema {schema}, expected schema {SCHEMA}; {remedy(folder)}")
    if values.get("digest") != digest_of({name: values[name] for name in values if name != "digest"}):
        raise UserError(f"{file} was edited: its digest does not match its contents; {remedy(folder)}")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise _corrupt(file, folder, error) from None
    for name, wanted in _META.get(manifest.kind, {}).items():
        if name in manifest.meta:
            try:
                TypeAdapter(wanted).validate_python(manifest.meta[name], strict=True)
            except ValidationError as error:
                raise _corrupt(file, folder, error, "meta", name) from None
    return values


def digest_of(manifest: dict[str, Any]) -> str:
    """The digest of a manifest's contents, without the digest itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def remedy(folder: Path) -> str:
    """What to do about a damaged artifact."""
    return f"delete {folder} and run `dvc repro` to make it again"


def _contents(file: Path, folder: Path) -> bytes:
    """The bytes of a file that may be anything; opening a pipe to read would wait for a writer for ever."""
    try:
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise UserError(f"{file} is no regular file; {remedy(folder)}")
            contents = opened.read(MOST_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"{file} is a folder; {remedy(folder)}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file} is missing: {folder} is not a complete artifact; run `dvc repro`") from None
    except OSError as error:  # a link to itself, a socket, no right to read it
        raise UserError(f"{file} cannot be read ({error.strerror}); {remedy(folder)}") from None
    if len(contents) > MOST_BYTES:
        raise UserError(f"{file} is corrupt: it has more than {MOST_BYTES} bytes; {remedy(folder)}")
    return contents


def _parsed(contents: bytes, file: Path, folder: Path) -> dict[str, Any]:
    try:
        values = json.loads(contents.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise UserError(f"{file} is corrupt: it is not valid JSON; {remedy(folder)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is corrupt: it holds no mapping; {remedy(folder)}")
    level: list[Any] = [values]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _members(outer)]
    if level:
        raise UserError(f"{file} is corrupt: it is nested deeper than {MOST_LEVELS} levels; {remedy(folder)}")
    return values


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _corrupt(file: Path, folder: Path, error: ValidationError, *place: str) -> UserError:
    problem = error.errors()[0]
    field = ".".join(str(part)[:80] for part in (*place, *problem["loc"]))
    return UserError(f"{file} is corrupt: {field}: {problem['msg']}; {remedy(folder)}")
