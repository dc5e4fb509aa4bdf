"""Artifacts: folders with a manifest, written whole or not at all, and checked when opened.

``manifest.json`` holds the schema version, the kind, free-form metadata (shapes, dtypes, counts), the
parameters that made the artifact, the digests of its inputs, the versions of what computed it, and size and
SHA-256 of every file. The artifact's own digest is the SHA-256 of its manifest's contents, so it covers
files, parameters and, through the inputs' digests, everything upstream. No timestamps and no run ids: the
same inputs, seed and machine give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.artifacts.files import hash_file, written_whole
from offramp.artifacts.manifest import MANIFEST, SCHEMA, Meta, digest_of, read_manifest, remedy
from offramp.errors import UserError
from offramp.machine.versions import computing_versions, text_versions

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

    files: frozenset[Path] = frozenset()
    """All that belongs to it, with the manifest."""

    def file(self, name: str) -> Path:
        """The path of one of its files; UserError where the manifest does not name it."""
        if not self.has(name):
            raise UserError(f"{self.path / name} is missing: no file of {self.path}; {remedy(self.path)}")
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether it has a file of that name."""
        return self.path / name in self.files


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
    with written_whole(Path(path)) as partial:
        partial.mkdir()
        writer = ArtifactWriter(partial)
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
        manifest["digest"] = digest_of(manifest)
        (partial / MANIFEST).write_text(
            json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


def open_artifact(
    path: Path,
    kind: str,
    inputs: dict[str, Artifact] | None = None,
    verify: bool | Collection[str] = True,
) -> Artifact:
    """Open the artifact at ``path``; its kind, schema, files and ``inputs`` must be what its manifest says.

    Sizes of files are checked, and their digests too: all of them, none, or those of the files that
    ``verify`` names. A symbolic link is as
    good as what it points to, since DVC can link outputs to its cache; files that the manifest does not name
    are refused. Raises UserError that names the file and the remedy.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest["kind"] != kind:
        content = f"kind {manifest['kind']!r}, schema {SCHEMA}"
        raise UserError(f"{path} holds {content}, expected kind {kind!r}, schema {SCHEMA}; {remedy(path)}")
    files = manifest["files"]
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            state = "is no regular file" if os.path.lexists(file) else "is missing"
            raise UserError(f"{file} {state}; {remedy(path)}")
        if file.stat().st_size != entry["bytes"]:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}; {remedy(path)}"
            )
        if (name in verify if isinstance(verify, Collection) else verify) and hash_file(file) != entry[
            "sha256"
        ]:
            raise UserError(
                f"{file} was changed after it was written (SHA-256 differs from its manifest); {remedy(path)}"
            )
    if extra := sorted(_names(path) - files.keys() - {MANIFEST}):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{path / extra[0]}{more}: {path} was made without it; move it elsewhere, or {remedy(path)}"
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
        digest=manifest["digest"],
        params=manifest["params"],
        inputs=manifest["inputs"],
        meta=Meta(manifest["meta"], path),
        made_with=manifest["made_with"],
        files=frozenset(path / name for name in (*files, MANIFEST)),
    )


def _names(path: Path) -> set[str]:
    """Everything below a folder but folders, and links to such."""
    return {
        str((Path(folder) / name).relative_to(path))
        for folder, folders, files in os.walk(path)
        for name in (*files, *(link for link in folders if (Path(folder) / link).is_symlink()))
    }
