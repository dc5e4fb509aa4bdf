"""The model that training starts from, as the parameters describe it."""

from __future__ import annotations

from typing import Any

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.pretrained import load_pretrained


def build_model(model: Any, pretrain: Any, meta: dict[str, Any]) -> Blockwise:
    """A native model with random weights, or a checkpoint cut into blocks.

    ``model`` and ``pretrain`` are sections of the parameters, ``meta`` the metadata of the data to be learned. UserError for a
    checkpoint of another vocabulary.
    """
    if model.source == "native":
        return BlockwiseLM(
            ModelConfig.from_json(
                model.sizes()
                | {
                    "vocab_size": meta["vocab_size"],
                    "window": meta["window"],
                    "heads_per_exit": pretrain.head == "per_block",
                    "exited_state": pretrain.blockwise.exited_state,
                    "exit_classifiers": pretrain.joint_classifier is not None,
                }
            )
        )
    pretrained = load_pretrained(
        model.name_or_path,
        model.gguf_file,
        model.revision,
        model.exits_after,
        meta["window"],
        pretrain.frozen.translator,
        pretrain.frozen.rank,
    )
    if pretrained.config.vocab_size != meta["vocab_size"]:
        raise UserError(
            f"data has a vocabulary of {meta['vocab_size']}, {model.name_or_path} one of "
            f"{pretrained.config.vocab_size}: they do not belong together; run `dvc repro`"
        )
    return pretrained
