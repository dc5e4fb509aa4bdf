"""What DVC recorded about each stage: its parameters, and the hashes of what it read and wrote.

``dvc.lock`` is the record. For stages that were run without DVC, or again after it, there is only what lies
on disk; such a stage gets a hash of its outputs that begins with ``files-``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from offramp.artifacts import manifest
from offramp.errors import UserError
from offramp.params import load_params, with_lists

RESULTLESS = ("check", "track")
"""Stages without results of their own: one looks at parameters and text first, one logs the others."""


MADE = "made."
"""Beginning of the tags by which a run is known by the digest of what it made, in any folder."""


def code_file(stage: str) -> str:
    """The file in which stage check writes down the code of another: a path below the project's root."""
    return f"build/code/{stage}.json"


@dataclass(frozen=True)
class Stage:
    """One stage as it last ran.

    ``deps`` and ``outs`` map a path to the MD5 that DVC recorded for it (None if DVC recorded nothing).
    """

    name: str
    hash: str
    params: dict[str, Any]
    deps: dict[str, str | None]
    outs: dict[str, str | None]

    @property
    def locked(self) -> bool:
        return not self.hash.startswith("files-")


def find_root(start: Path | None = None) -> Path:
    """The project that ``start``, or else the current folder, is in: where .dvc is, or dvc.yaml.

    Raises UserError if there is none.
    """
    start = (start or Path.cwd()).resolve()
    for marker in (".dvc", "dvc.yaml"):
        for folder in (start, *start.parents):
            if (folder / marker).exists():
                return folder
    raise UserError(f"no DVC project in {start} or above it; run this inside the project")


def read_stages(root: Path, as_locked: bool = False) -> list[Stage]:
    """The stages that have run and have results, in the order of dvc.yaml.

    A stage whose metrics on disk are not the ones in dvc.lock is described by what is on disk. Folders are
    not compared here: hashing cached states takes long, and ``offramp lineage`` does it. With ``as_locked``:
    all stages, and as dvc.lock has them wherever it does.
    """
    locked = (_yaml(root / "dvc.lock") or {}).get("stages", {})
    stages = []
    for name, declared in (_yaml(root / "dvc.yaml") or {}).get("stages", {}).items():
        if name in RESULTLESS and not as_locked:
            continue
        stage = _from_lock(name, locked[name]) if name in locked else None
        if stage is None or not (as_locked or _files_match(root, stage)):
            stage = _from_disk(root, name, declared)
        if stage is not None:
            stages.append(stage)
    return stages


def dvc_md5(path: Path) -> str | None:
    """The MD5 that DVC gives a file or folder (folders end in ``.dir``); None if ``path`` does not exist."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    if not path.is_dir():
        return None
    entries = [
        {"md5": dvc_md5(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file() and file.suffix != ".pyc"  # bytecode is in .dvcignore
    ]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode()).hexdigest() + ".dir"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in ``folder``; None if there is none that is in order."""
    try:
        return manifest.read_manifest(folder)
    except UserError:
        return None


def made_tags(stage: str, root: Path) -> dict[str, str]:
    """The tags by which the run that made the artifacts on disk is known: those of a stage of dvc.yaml."""
    outs = _outs((_yaml(root / "dvc.yaml"))["stages"][stage])
    manifests = {out: read_manifest(root / out) for out in outs}
    return {
        f"{MADE}{manifest['digest']}": artifact_name(manifest["kind"], Path(out))
        for out, manifest in manifests.items()
        if manifest
    }


def made_with_tags(manifests: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What computed these artifacts, as tags of a run: ``made_with.torch`` and so on."""
    values: dict[str, set[str]] = {}
    for written in manifests:
        for name, value in written.get("made_with", {}).items():
            values.setdefault(f"made_with.{name}", set()).add(value)
    return {tag: ", ".join(sorted(several)) for tag, several in sorted(values.items())}


def artifact_name(kind: str, folder: Path) -> str:
    """The kind, and the folder if that says more: ``lm`` of models/lm, ``states.test`` of states/test."""
    return kind if folder.name == kind else f"{kind}.{folder.name}"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def digest(values: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _from_lock(name: str, entry: dict[str, Any]) -> Stage:
    def hashes(key: str) -> dict[str, str | None]:
        return {item["path"]: item.get("md5") for item in entry.get(key, [])}

    params = flatten({key: value for file in entry.get("params", {}).values() for key, value in file.items()})
    return Stage(name, digest(entry), with_lists(params), hashes("deps"), hashes("outs"))


def _from_disk(root: Path, name: str, declared: dict[str, Any]) -> Stage | None:
    outs = _outs(declared)
    if not any(_has_content(root / out) for out in outs):
        return None
    params = flatten(load_params(name, root).to_json())
    contents = {}
    for out in outs:
        written = read_manifest(root / out)
        contents[out] = written["digest"] if written else dvc_md5(root / out)
    return Stage(
        name,
        "files-" + digest([params, contents]),
        params,
        dict.fromkeys(declared.get("deps", [])),
        dict.fromkeys(outs),
    )


def _outs(declared: dict[str, Any]) -> list[str]:
    """The paths that a stage writes: an out is "path" or {"path": {cache: false, ...}}."""
    keys = ("outs", "metrics", "plots")
    return [
        path if isinstance(path, str) else next(iter(path)) for key in keys for path in declared.get(key, [])
    ]


def _files_match(root: Path, stage: Stage) -> bool:
    return all(
        dvc_md5(root / out) == md5 for out, md5 in stage.outs.items() if not (md5 or "").endswith(".dir")
    )


def _has_content(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and bool(os.listdir(path)))


def _yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8")) if path.is_file() else None
