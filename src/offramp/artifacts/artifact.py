"""Artifacts: folders with a manifest, written whole or not at all, and checked when opened.

``manifest.json`` holds the schema version, the kind, free-form metadata (shapes, dtypes, counts), the
parameters that made the artifact, the digests of its inputs, the versions of what computed it, and size and
SHA-256 of every file. The artifact's own digest is the SHA-256 of its manifest's contents, so it covers
files, parameters and, through the inputs' digests, everything upstream. No timestamps and no run ids: the
same inputs, seed and machine give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.artifacts.files import hash_file
from offramp.errors import UserError
from offramp.machine.versions import computing_versions, text_versions

SCHEMA = 2
MANIFEST = "manifest.json"
TEXT_KIND = "data"
"""The kind that is made from text alone, so that no instruction set and no torch has a part in it."""


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its files exist and, if verified, are the ones that were written."""

    path: Path
    kind: str
    digest: str
    params: dict[str, Any]
    inputs: dict[str, str]
    """Digests of the artifacts it was made from, by their names."""
    meta: dict[str, Any]
    made_with: dict[str, str]
    """Versions of libraries and, for all but text, instruction set and device (``machine.versions``)."""

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass
class ArtifactWriter:
    """Where a new artifact's files go until it is whole."""

    path: Path
    meta: dict[str, Any] = field(default_factory=dict)


@contextmanager
def create_artifact(
    path: Path, kind: str, params: dict[str, Any], inputs: dict[str, Artifact]
) -> Iterator[ArtifactWriter]:
    """Write files under the yielded ``.path``; on success the folder replaces ``path`` in one rename.

    On an exception nothing at ``path`` changes.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = ArtifactWriter(partial)
    try:
        yield writer
        manifest = {
            "schema": SCHEMA,
            "kind": kind,
            "meta": writer.meta,
            "params": params,
            "inputs": {name: artifact.digest for name, artifact in sorted(inputs.items())},
            "made_with": text_versions() if kind == TEXT_KIND else computing_versions(),
            "files": {
                str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": hash_file(file)}
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            },
        }
        manifest["digest"] = _digest(manifest)
        (partial / MANIFEST).write_text(
            json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_artifact(
    path: Path, kind: str, inputs: dict[str, Artifact] | None = None, verify: bool = True
) -> Artifact:
    """Open the artifact at ``path``; its kind, schema, files and ``inputs`` must be what its manifest says.

    Unless ``verify`` is false, the files' digests are checked as well as their sizes. Raises UserError that
    names the file and the remedy.
    """
    path = Path(path)
    remedy = f"delete {path} and run `dvc repro` to make it again"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path / MANIFEST} is missing: {path} is not a complete artifact; run `dvc repro`"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path / MANIFEST} is corrupt; {remedy}") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path / MANIFEST} is corrupt; {remedy}")
    if manifest.get("schema") != SCHEMA or manifest.get("kind") != kind:
        content = f"kind {manifest.get('kind')!r}, schema {manifest.get('schema')!r}"
        raise UserError(f"{path} holds {content}, expected kind {kind!r}, schema {SCHEMA}; {remedy}")
    recorded = manifest.pop("digest", None)
    if recorded != _digest(manifest):
        raise UserError(f"{path / MANIFEST} was edited: its digest does not match its contents; {remedy}")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing; {remedy}")
        if file.stat().st_size != entry["bytes"]:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}; {remedy}"
            )
        if verify and hash_file(file) != entry["sha256"]:
            raise UserError(
                f"{file} was changed after it was written (SHA-256 differs from its manifest); {remedy}"
            )
    for name, artifact in (inputs or {}).items():
        made_from = manifest["inputs"].get(name)
        if made_from != artifact.digest:
            raise UserError(
                f"{path} was made from another {name} (digest {str(made_from)[:12]}) than {artifact.path} "
                f"(digest {artifact.digest[:12]}); run `dvc repro` to make them match"
            )
    return Artifact(
        path,
        kind,
        digest=recorded,
        params=manifest["params"],
        inputs=manifest["inputs"],
        meta=manifest["meta"],
        made_with=manifest["made_with"],
    )


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
