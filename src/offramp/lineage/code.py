"""What a stage or study depends on of code: its module, all that it imports, and the libraries that compute.

The digests of these files are one small JSON file per stage, which dvc.yaml names instead of a list of modules: DVC does
not follow imports, and lists of hundreds of files cost every dvc command seconds. Same code, same bytes. The same digests
are part of the identity of everything cached outside DVC (training snapshots, models of studies), so that a changed line
never finds what older code made.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import grimp

from offramp.artifacts.files import hash_file, write_json

PACKAGES = ("offramp", "pipeline", "studies")
NOT_CODE_OF_A_RESULT = {"offramp.params", "offramp.errors"}
"""Schema and error type: they decide whether a run starts, never what it computes."""

DATA_FILES = (".html", ".j2", ".tsv")
"""Files beside modules that are code in all but their suffix: templates, and the pairs of the reversal test."""

LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
}
"""Packages whose version can change a result, by the name that is imported: their distributions."""


@cache
def import_graph() -> grimp.ImportGraph:
    """Who imports whom in the library, the stages and the studies; imports inside functions count."""
    packages = [name for name in PACKAGES if find_spec(name)]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def code_of(module: str, graph: grimp.ImportGraph, root: Path) -> dict[str, str]:
    """SHA-256 by file, relative to the repository ``root``, and version by library, of all that ``module`` needs."""
    needed = {module, *graph.find_upstream_modules(module)} - NOT_CODE_OF_A_RESULT
    files = {_file(name, root) for name in needed if name.split(".")[0] in PACKAGES}
    for folder in {file.parent for file in files}:
        files |= {file for file in folder.iterdir() if file.suffix in DATA_FILES}
    digests = {file.relative_to(root).as_posix(): hash_file(file) for file in sorted(files)}
    libraries = {name: version(LIBRARIES[name]).split("+")[0] for name in sorted(needed & LIBRARIES.keys())}
    return digests | libraries


def _file(module: str, root: Path) -> Path:
    path = Path(*module.split("."))
    path = root / "src" / path if path.parts[0] == "offramp" else root / path
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def code_digest(module: str, root: Path) -> str:
    """One SHA-256 over ``code_of``: what a cached result is known by."""
    code = code_of(module, import_graph(), root)
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()


def write_code(modules: dict[str, str], folder: Path, root: Path) -> None:
    """Write ``folder``/NAME.json for every name of ``modules``; files of other names there are removed."""
    for file in folder.glob("*.json"):
        if file.stem not in modules:
            file.unlink()
    for name, module in modules.items():
        write_json(folder / f"{name}.json", code_of(module, import_graph(), root))
