"""Language models as artifacts: safetensors weights beside their configuration.

Of a checkpoint that was not trained itself only the translators are kept, with the SHA-256 of its weight files: it is read
from where it is each time. Of one that was, all weights and Transformers' configuration (``checkpoint.json``) are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from offramp.artifacts.artifact import Artifact
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.weights import weight_digests
from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.pretrained import PretrainedConfig, PretrainedLM, empty_model, load_weights

CONFIG, WEIGHTS, THEIRS = "config.json", "weights.safetensors", "checkpoint.json"


def save_model(model: Blockwise, folder: Path, base_trained: bool = True) -> None:
    """``base_trained``: whether a pretrained model's weights are other ones now than its checkpoint's."""
    config = model.config.to_json()
    if isinstance(model, PretrainedLM):
        if base_trained:
            theirs = read_config(model.config.checkpoint)
            if model.head is not None:  # files may hold a head that the configuration says is the embedding
                theirs.tie_word_embeddings = False
            theirs.to_json_file(folder / THEIRS)
        else:
            config["checkpoint"] = weight_digests(model.config.checkpoint)
    kept = model if base_trained else model.translators
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in kept.state_dict().items()},
        folder / WEIGHTS,
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def load_model(lm: Artifact, root: Path = Path()) -> Blockwise:
    """The model of an ``lm`` artifact, on the CPU, in evaluation mode; a relative path of its checkpoint starts at ``root``."""
    config = json.loads(lm.file(CONFIG).read_text())
    return (_pretrained(lm, config, root) if "name_or_path" in config else _native(lm, config)).eval()


def _native(lm: Artifact, config: dict[str, Any]) -> BlockwiseLM:
    model = BlockwiseLM(ModelConfig.from_json(config))
    _fill(model, lm)
    return model


def _pretrained(lm: Artifact, values: dict[str, Any], root: Path) -> PretrainedLM:
    """UserError where the checkpoint is not the one that ``lm`` was made from."""
    digests = values.pop("checkpoint", None)
    config = PretrainedConfig.from_json(values)
    if digests is None:
        from transformers import CONFIG_MAPPING

        theirs = json.loads(lm.file(THEIRS).read_text())
        model = empty_model(CONFIG_MAPPING[theirs["model_type"]].from_dict(theirs), config)
        _fill(model, lm, assign=True)
        return model
    checkpoint = config.checkpoint.under(root)
    if weight_digests(checkpoint) != digests:
        raise UserError(
            f"{checkpoint}: its weights are not those that {lm.path} was made from; "
            "restore them, or run `dvc repro`"
        )
    model = PretrainedLM(load_weights(*checkpoint), config)
    _fill(model.translators, lm)
    return model


def _fill(module: nn.Module, lm: Artifact, assign: bool = False) -> None:
    try:
        module.load_state_dict(load_file(lm.file(WEIGHTS)), assign=assign)
    except RuntimeError as error:
        raise UserError(f"{lm.file(WEIGHTS)} does not fit {lm.file(CONFIG)}: {error}") from None
