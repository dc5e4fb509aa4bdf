"""Stage check: validate params.yaml and take the corpus's fingerprint, before DVC touches any other stage's output.

DVC deletes a stage's outputs before running it, so validation inside a stage alone would come too late to keep
earlier results. This stage runs every time; its output changes only when the text does, so passing re-runs nothing.
"""

from __future__ import annotations

from pathlib import Path

from offramp.corpus.fingerprint import fingerprint
from offramp.lineage.artifact import write_json
from offramp.params import Declared
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    if params.runtime.device not in ("auto", "cpu"):  # importing torch takes seconds
        from offramp.runtime import setup

        setup(params.runtime.device, params.runtime.threads)
    write_json(root / "build/corpus.json", fingerprint(params.corpus, root))


main = stage("check", run)

if __name__ == "__main__":
    main()
