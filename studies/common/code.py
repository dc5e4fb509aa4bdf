"""``python -m studies code``: write build/code, one file per study and tool, that studies/dvc.yaml names as
their dependency.

Each holds the SHA-256 of every module that is imported and the versions of the libraries that compute
(``offramp.lineage.code``); that of a study also its shared settings and its pairs of facts, those of the
ledger and the findings all claims, questions and descriptions of studies. Made anew every time, so neither
`dvc push` nor `dvc pull` knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offramp.artifacts.files import hash_file, write_json
from offramp.errors import UserError
from offramp.lineage.code import code_of
from studies.common.study import HOME, SHARED, read_yaml, studies

CLAIMS_READERS = {"ledger": "studies.ledger.ledger", "findings": "studies.findings.findings"}
"""Tools that read every study's claims.yaml, questions.yaml and study.yaml: their modules."""


def write_code(home: Path = HOME) -> Path:
    """Write build/code below the folder of all studies."""
    folder, root = home / "build/code", home.parent
    known, shared = studies(home), read_yaml(home / SHARED)
    for file in folder.glob("*.json"):
        file.unlink()
    for study in known.values():
        if not (home / study.name / "__init__.py").exists():
            raise UserError(
                f"{home / study.name} has no __init__.py; add an empty one, or its imports are not followed"
            )
        about = study.about
        depends = {
            "code": code_of(study.module_name, root),
            "shared": {name: shared[name] for name in about.shared},
            "published_seed": about.published_seed,
            "threads": about.threads,
        }
        write_json(folder / f"{study.name}.json", depends)
    documents = [
        home / name / file for name in known for file in ("study.yaml", "claims.yaml", "questions.yaml")
    ]
    digests = {file.relative_to(home).as_posix(): hash_file(file) for file in documents if file.exists()}
    for name, module in CLAIMS_READERS.items():
        write_json(folder / f"{name}.json", {"code": code_of(module, root), "studies": digests})
    return folder


def main(arguments: Sequence[str]) -> None:
    print(f"wrote {write_code()}")
