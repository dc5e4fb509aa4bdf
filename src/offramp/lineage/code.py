"""What a stage or a study depends on of code: its module, all that this imports, and libraries that compute.

DVC does not follow imports. So the digests of these files are written to one small JSON file per stage, and
dvc.yaml names that file among the stage's dependencies: lists of modules would be long, and cost every dvc
command seconds. The same code gives the same bytes. The digests are also part of the identity of everything
that is cached outside DVC (training snapshots, models of studies), so that a changed line never finds what
older code made.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

import grimp

from offramp.artifacts.files import hash_file, write_json
from offramp.machine.versions import LIBRARIES

LIBRARY = "offramp"
NOT_CODE_OF_A_RESULT = (
    "offramp.params",
    "offramp.errors",
    "offramp.lineage.code",
    "offramp.machine.entry",
    "offramp.machine.lock",
    "offramp.tracking.live",
)
"""Schema, errors and the like: they decide whether a run starts or goes on, never what it computes; and what
is shown of a run while it goes on is told by the stage, which is told nothing back."""

DATA_FILES = (".html", ".j2", ".tsv")
"""Files beside modules that are code in all but name: templates, and the pairs of the reversal test."""


def code_of(module: str, root: Path) -> dict[str, str]:
    """The SHA-256 of every file that ``module`` needs, by path below ``root``, and versions of libraries.

    ``root`` is the repository, whose ``src`` and own packages must be what Python imports. Versions are
    without their local part (``+cpu``, ``+cu130``): results made on another kind of machine stay usable.
    """
    graph = _import_graph(module.split(".")[0])
    needed = {module, *graph.find_upstream_modules(module)}
    modules = {name for name in needed if not graph.is_module_squashed(name)}
    modules |= {package for name in modules for package in _packages(name)}
    files = {_file(name, root) for name in modules}
    for folder in {file.parent for file in files}:
        files |= {file for file in folder.iterdir() if file.suffix in DATA_FILES}
    digests = {file.relative_to(root).as_posix(): hash_file(file) for file in sorted(files)}
    libraries = {name: version(LIBRARIES[name]).split("+")[0] for name in sorted(needed & LIBRARIES.keys())}
    return digests | libraries


@cache
def code_digest(module: str, root: Path) -> str:
    """One SHA-256 over ``code_of``: the part of a cached result's identity that is code."""
    return hashlib.sha256(json.dumps(code_of(module, root), sort_keys=True).encode()).hexdigest()


def write_code(modules: dict[str, str], folder: Path, root: Path) -> None:
    """Write the code of each of ``modules`` to ``folder``/NAME.json; JSON files of other names there go."""
    for file in folder.glob("*.json"):
        if file.stem not in modules:
            file.unlink()
    for name, module in modules.items():
        write_json(folder / f"{name}.json", code_of(module, root))


ASKED_ONLY = ("offramp.machine.versions", "torch")
"""An import that only asks what the CPU offers: who records it does not compute with torch for that."""


@cache
def _import_graph(package: str) -> grimp.ImportGraph:
    """Who imports whom in ``package`` and the library; imports inside functions count.

    What is reached through NOT_CODE_OF_A_RESULT alone is no code of a result either: those modules are taken
    out.
    """
    graph = grimp.build_graph(package, LIBRARY, include_external_packages=True, cache_dir=None)
    for module in NOT_CODE_OF_A_RESULT:
        graph.remove_module(module)
    importer, imported = ASKED_ONLY
    graph.remove_import(importer=importer, imported=imported)
    return graph


def _packages(module: str) -> list[str]:
    """The packages around a module, whose ``__init__`` runs before it."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _file(module: str, root: Path) -> Path:
    path = Path(*module.split("."))
    path = root / "src" / path if path.parts[0] == LIBRARY else root / path
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
