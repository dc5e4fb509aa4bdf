"""The weight files of a checkpoint: whether they can be read, and their digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.artifacts.files import hash_file
from offramp.checkpoints.checkpoint import Checkpoint, find_file, first_line, read_json
from offramp.errors import UserError, out_of_memory


def check_weights(checkpoint: Checkpoint) -> None:
    """UserError where the weights in a checkpoint's folder are missing, cut short or pickled.

    Only their headers are read. Those of a GGUF file are read together with its configuration, and a
    checkpoint on the hub is looked at when it is fetched.
    """
    if checkpoint.gguf_file or checkpoint.folder is None:
        return
    from safetensors import SafetensorError, safe_open

    for file in _weight_files(checkpoint, checkpoint.folder):
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"{checkpoint}: its safetensors file is damaged ({file.name}: {first_line(error)}); "
                "fetch or save it again"
            ) from None


def _weight_files(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """The safetensors files that Transformers reads: one, or the shards of an index."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise UserError(
            f"{checkpoint}: no safetensors weights there, and pickled ones are not read; save it with "
            "Transformers' save_pretrained"
        )
    shards = read_json(checkpoint, index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(
            f"{checkpoint}: its {index.name} has no weight_map, which says where weights are; "
            "fetch or save it again"
        )
    files = [folder / str(name) for name in dict.fromkeys(shards.values())]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{checkpoint}: {', '.join(missing)} of its {index.name} is missing; fetch or save it again"
        )
    return files


def weight_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the checkpoint's weight files, by name.

    Of a checkpoint on the hub, those that have been fetched to this machine. UserError where there is no
    checkpoint.
    """
    name = checkpoint.gguf_file or "config.json"
    anchor = find_file(checkpoint, name)
    if anchor is None:
        raise UserError(f"{checkpoint}: no {name} there; restore the checkpoint, or correct its name")
    files = [anchor] if checkpoint.gguf_file else sorted(anchor.parent.glob("*.safetensors"))
    return {file.name: hash_file(file) for file in files}


def weights_fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """A few lines of JSON that change when the weights in the checkpoint's folder do.

    A checkpoint on the hub is not fetched for this: a new commit on the same branch goes unnoticed.
    """
    if checkpoint.folder is None:
        return {"hub": checkpoint.name_or_path, "revision": checkpoint.revision}
    return {"weights": weight_digests(checkpoint)}
