"""The weight files of a checkpoint: whether they can be read, and their digests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.artifacts.files import hash_file
from offramp.checkpoints.checkpoint import Checkpoint, find_file, first_line, read_json
from offramp.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
        raise UserError(f"{checkpoint}: {_what_is_there_instead(folder)}")
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


def _what_is_there_instead(folder: Path) -> str:
    """Why a folder without weights that Transformers reads has none, and what to do."""
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    if any(name.startswith("consolidated") for name in names):
        return (
            f"{', '.join(names)} is in the format of Mistral's own programs, whose weights have other names; "
            "fetch model.safetensors, or model.safetensors.index.json and its shards, from the same place"
        )
    if names:
        return (
            f"there is {', '.join(names)}, but neither model.safetensors nor model.safetensors.index.json, "
            "which says what is in which file; fetch or save it again"
        )
    return (
        "no safetensors weights there, and pickled ones are not read; save it with Transformers' "
        "save_pretrained"
    )


def check_shapes(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """UserError where weights in a checkpoint's folder have other shapes than its configuration says.

    Only their headers are read.
    """
    if checkpoint.gguf_file or checkpoint.folder is None:
        return
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for file in _weight_files(checkpoint, checkpoint.folder):
        with safe_open(file, "numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no dictionary
                have = tuple(weights.get_slice(name).get_shape())
                # the weights of a base model are saved without its name
                expected = wanted.get(name, wanted.get(f"{model.base_model_prefix}.{name}", have))
                if have != expected:
                    raise UserError(
                        f"{checkpoint}: {name} is {_times(have)} in {file.name} and {_times(expected)} by "
                        f"its config.json{_sizes(config, name)}: they do not belong together; fetch both"
                    )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _sizes(config: PreTrainedConfig, name: str) -> str:
    """The size in the configuration that a weight's shape hangs on, where that is no mystery."""
    part = next((part for part in ("k_proj", "v_proj", "q_proj", "gate_proj", "embed") if part in name), "")
    size = {
        "k_proj": "num_key_value_heads",
        "v_proj": "num_key_value_heads",
        "q_proj": "num_attention_heads",
        "gate_proj": "intermediate_size",
        "embed": "vocab_size",
    }.get(part, "")
    return f" ({size} = {getattr(config, size)})" if hasattr(config, size) else ""


def weight_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the weight files that Transformers reads of a checkpoint, by name.

    Of a checkpoint on the hub, those that have been fetched to this machine. UserError where there is no
    checkpoint, or one without weights.
    """
    name = checkpoint.gguf_file or "config.json"
    anchor = find_file(checkpoint, name)
    if anchor is None:
        raise UserError(f"{checkpoint}: no {name} there; restore the checkpoint, or correct its name")
    if checkpoint.gguf_file:
        files = [anchor]
    elif checkpoint.folder:
        files = sorted(_weight_files(checkpoint, checkpoint.folder))
    else:
        files = sorted(anchor.parent.glob("model*.safetensors"))
    return {file.name: hash_file(file) for file in files}


def weights_fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """A few lines of JSON that change when the weights in the checkpoint's folder do.

    A checkpoint on the hub is not fetched for this: a new commit on the same branch goes unnoticed.
    """
    if checkpoint.folder is None:
        return {"hub": checkpoint.name_or_path, "revision": checkpoint.revision}
    return {"weights": weight_digests(checkpoint)}
