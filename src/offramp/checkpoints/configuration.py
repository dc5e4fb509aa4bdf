"""Configurations of checkpoints: which can be used, where a model can be cut, and why others cannot.

All that can be refused from the configuration alone is refused here, before any weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from offramp.artifacts.paths import in_project
from offramp.checkpoints.checkpoint import Checkpoint, find_file, first_line, read_json
from offramp.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox")
"""The supported architectures, by the ``model_type`` of a configuration."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Scalings of rotary positions whose angles are the same whatever the length of a sequence."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_positions",
)
"""The keys of config.json that count something, under the names of all families."""


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The configuration of a checkpoint, as Transformers reads it.

    UserError where there is none, where it is damaged, or where its architecture is not supported.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _check_place(checkpoint)
    if file := None if checkpoint.gguf_file else find_file(checkpoint, "config.json"):
        _check_sizes(checkpoint, read_json(checkpoint, file))
    try:
        config = AutoConfig.from_pretrained(checkpoint.place, **checkpoint.options)
    except StrictDataclassError as error:
        raise UserError(
            f"{checkpoint}: its config.json is not valid: {' '.join(str(error).split())}"
        ) from None
    except Exception as error:  # Transformers raises errors of many types for damaged files
        if out_of_memory(error):
            raise
        if checkpoint.gguf_file and checkpoint.folder:
            raise UserError(
                f"{checkpoint}: {checkpoint.gguf_file} is damaged, or no GGUF file of a supported "
                f"architecture ({first_line(error) or type(error).__name__}); fetch it again"
            ) from None
        raise UserError(
            f"{checkpoint}: no such folder, or no readable checkpoint of that name on the hub "
            f"({first_line(error)})"
        ) from None
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"{checkpoint}: architecture {config.model_type!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if checkpoint.gguf_file:  # the weights of a GGUF file are dequantised as they are read
        vars(config).pop("quantization_config", None)
    _check_values(checkpoint, config)
    return config


def _check_place(checkpoint: Checkpoint) -> None:
    """UserError unless a whole checkpoint can be where the parameters say."""
    folder, gguf = checkpoint.folder, checkpoint.gguf_file
    if folder is None and in_project(checkpoint.name_or_path).is_file():
        raise UserError(
            f"{checkpoint} is a file; give its folder, and for a GGUF file its name as model.gguf_file"
        )
    if folder is None and not checkpoint.may_be_on_hub:
        raise UserError(
            f"{checkpoint}: no such folder, and no name on the hub either; give the path of a saved "
            "checkpoint (relative paths start at the project's root)"
        )
    if find_file(checkpoint, "adapter_config.json"):  # Transformers would add its weights to the model
        raise UserError(
            f"{checkpoint}: an adapter is saved there (adapter_config.json), which is not supported; merge "
            "it with "
            "PEFT's merge_and_unload and save the whole model, or delete its files"
        )
    if folder is None:
        return
    if checkpoint.revision:
        raise UserError(
            f"model.revision = {checkpoint.revision!r} is of a name on the hub, but {folder} is a folder; "
            "set it to null"
        )
    if gguf and not (folder / gguf).is_file():
        present = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
        raise UserError(f"model.gguf_file = {gguf!r}: no such file in {folder}; it has {present}")
    if not gguf and not (folder / "config.json").is_file():
        raise UserError(
            f"{checkpoint}: no config.json in that folder; give that of a saved checkpoint, "
            "or set model.gguf_file"
        )


def _check_sizes(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    """UserError for sizes below 1 in config.json, found before Transformers computes with them."""
    for name in SIZES:
        if isinstance(size := values.get(name), int) and size < 1:
            raise UserError(f"{checkpoint}: {name} = {size} in its config.json; it is at least 1")
    quantised = values.get("quantization_config")
    if quantised is not None and not isinstance(quantised, dict):
        raise UserError(
            f"{checkpoint}: quantization_config = {quantised!r} in its config.json is no section; quantised "
            "weights "
            "are not supported"
        )


def _check_values(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """UserError for activations that Transformers does not have and end tokens outside the vocabulary."""
    from transformers.activations import ACT2CLS

    for name in ("hidden_act", "activation_function"):
        if getattr(config, name, None) not in (None, *ACT2CLS):
            raise UserError(
                f"{checkpoint}: {name} = {getattr(config, name)!r} in its config.json is no activation that "
                f"Transformers has; known: {', '.join(ACT2CLS)}"
            )
    ends = config.eos_token_id
    if ends == [] or not all(isinstance(end, int) and 0 <= end < config.vocab_size for end in listed(ends)):
        raise UserError(
            f"{checkpoint}: eos_token_id = {ends} is not in its vocabulary of {config.vocab_size}; give a "
            "token of "
            "it, or null where no token ends a text"
        )


def check_cut(
    config: PreTrainedConfig, checkpoint: Checkpoint, exits_after: Sequence[int], window: int
) -> None:
    """UserError unless a checkpoint of this configuration can be cut after these numbers of layers.

    It is also refused where it would not be run exactly on ``window`` tokens: a longer window than it has
    positions, kinds of rotary positions, logits or attention that the layers of ``nn.pretrained_layers`` do
    not compute, and quantised weights.
    """
    layers = config.num_hidden_layers
    if not exits_after or any(later <= earlier for earlier, later in pairwise((0, *exits_after, layers))):
        raise UserError(
            f"model.exits_after = {list(exits_after)}: give increasing numbers of layers from 1 to "
            f"{layers - 1}; "
            f"{checkpoint.name_or_path} has {layers} layers"
        )
    if window > config.max_position_embeddings:
        raise UserError(
            f"window = {window} exceeds the {config.max_position_embeddings} positions of "
            f"{checkpoint.name_or_path}"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and window > sliding:
        raise UserError(
            f"window = {window} exceeds the attention window of {checkpoint.name_or_path}, {sliding} tokens"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise UserError(
            f"{checkpoint}: rotary positions of type {rope!r} are not supported; "
            f"supported: {', '.join(ROPE_TYPES)}"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise UserError(
                f"{checkpoint}: it caps its logits ({name}), which is not supported; choose another "
                "checkpoint"
            )
    if not getattr(config, "scale_attn_weights", True) or getattr(
        config, "scale_attn_by_inverse_layer_idx", False
    ):
        raise UserError(
            f"{checkpoint}: attention that is not scaled by 1/sqrt(head width) is not supported; "
            "choose another checkpoint"
        )
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{checkpoint}: quantised weights are not supported; give them in full precision or as GGUF"
        )


def listed(tokens: int | list[int] | None) -> list[int]:
    """The ``eos_token_id`` of a configuration as a list: it may be one token, several or none."""
    return tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]
