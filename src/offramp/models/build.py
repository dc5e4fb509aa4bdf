"""The model that training starts from, as the parameters describe it."""

from __future__ import annotations

from typing import Any

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.pretrained import load_pretrained
from offramp.params import Model, Pretrain


def build_model(model: Model, pretrain: Pretrain, meta: dict[str, Any]) -> Blockwise:
    """A native model with random weights, or a checkpoint cut into blocks.

    ``meta`` is the metadata of the data to be learned. Raises UserError for a checkpoint of another
    vocabulary.
    """
    if model.source == "native":
        return BlockwiseLM(_native_config(model, pretrain, meta))
    pretrained = load_pretrained(
        Checkpoint.of(model),
        exits_after=model.exits_after,
        window=meta["window"],
        translator=pretrain.frozen.translator,
        rank=pretrain.frozen.rank,
    )
    if pretrained.config.vocab_size != meta["vocab_size"]:
        raise UserError(
            f"data has a vocabulary of {meta['vocab_size']}, {model.name_or_path} one of "
            f"{pretrained.config.vocab_size}: they do not belong together; run `dvc repro`"
        )
    return pretrained


def _native_config(model: Model, pretrain: Pretrain, meta: dict[str, Any]) -> ModelConfig:
    """Sizes as the parameters say, the parts that the training method needs, the vocabulary of the data."""
    return ModelConfig(
        vocab_size=meta["vocab_size"],
        window=meta["window"],
        width=model.width,
        heads=model.heads,
        ffn_width=model.ffn_width,
        block_layers=tuple(model.block_layers),
        norm=model.norm,
        tied=model.tied,
        heads_per_exit=pretrain.head == "per_block",
        exited_state=pretrain.blockwise.exited_state,
        exit_classifiers=pretrain.joint_classifier is not None,
        key_value_heads=model.key_value_heads,
    )
