"""The code of every study: what its stages depend on instead of a list of modules.

    python -m pipeline.studies.code

Writes build/studies/code/<study>.json: the SHA-256 of every module that the study imports, imports inside functions
included. Each dvc command reads dvc.yaml and dvc.lock several times over, and the modules of all studies there cost it
seconds. Same code, same bytes.
"""

from __future__ import annotations

from pathlib import Path

import grimp

from offramp.lineage.artifact import hash_file, write_json

CODE = Path("build/studies/code")
NOT_CODE_OF_A_RESULT = {"offramp.params", "offramp.errors"}
"""Schema and error type: they decide whether a run starts, never what it computes."""


def import_graph() -> grimp.ImportGraph:
    """Who imports whom in ``offramp`` and ``pipeline``."""
    return grimp.build_graph("offramp", "pipeline", cache_dir=None)


def code_of(module: str, graph: grimp.ImportGraph, root: Path = Path(".")) -> list[str]:
    """The files of ``module`` and of all it imports, relative to ``root``, sorted."""
    imported = graph.find_upstream_modules(module) - NOT_CODE_OF_A_RESULT
    return sorted(_file(name, root) for name in {module, *imported})


def _file(module: str, root: Path) -> str:
    path = Path(*module.split("."))
    path = path if path.parts[0] == "pipeline" else Path("src") / path
    return (path / "__init__.py" if (root / path).is_dir() else path.with_suffix(".py")).as_posix()


def write_code(graph: grimp.ImportGraph, root: Path = Path(".")) -> Path:
    """Write build/studies/code under ``root``: a file for each study, the ledger and the findings."""
    for module in sorted(graph.find_children("pipeline.studies")):
        name = module.rpartition(".")[2]
        if name != "code" and not name.startswith("_"):
            write_json(root / CODE / f"{name}.json", {file: hash_file(root / file) for file in code_of(module, graph, root)})
    return root / CODE


def main() -> None:
    print(f"wrote {write_code(import_graph())}")


if __name__ == "__main__":
    main()
