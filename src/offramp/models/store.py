"""Language models as artifacts: safetensors weights beside their configuration.

Of a checkpoint whose weights were not trained only the translators are kept, with the SHA-256 of its weight
files: the checkpoint is read each time from where it is. Of one whose weights were trained all of them are
kept, with the configuration that Transformers wants (``checkpoint.json``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from offramp.artifacts.artifact import Artifact
from offramp.artifacts.files import readable
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.weights import weight_digests
from offramp.errors import UserError, writing
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.pretrained import PretrainedConfig, PretrainedLM, empty_model, load_weights

CONFIG, WEIGHTS, HF_CONFIG = "config.json", "weights.safetensors", "checkpoint.json"


def save_model(model: Blockwise, folder: Path, base_trained: bool = True) -> None:
    """Write configuration and weights of a model to a folder.

    ``base_trained`` says of a pretrained model whether its weights are no longer those of the checkpoint.
    """
    config = model.config.to_json()
    if isinstance(model, PretrainedLM):
        if base_trained:
            hf_config = read_config(model.config.checkpoint)
            if model.head is not None:  # files may hold a head that the configuration says is the embedding
                hf_config.tie_word_embeddings = False
            hf_config.to_json_file(folder / HF_CONFIG)
        else:
            config["checkpoint"] = weight_digests(model.config.checkpoint)
    kept = model.translators if isinstance(model, PretrainedLM) and not base_trained else model
    weights = {name: value.detach().cpu().contiguous() for name, value in kept.state_dict().items()}
    with writing(folder / WEIGHTS, sum(weight.nbytes for weight in weights.values())):
        save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def load_model(lm: Artifact, root: Path = Path()) -> Blockwise:
    """The model of an ``lm`` artifact, on the CPU, in evaluation mode.

    A relative path of its checkpoint starts at ``root``. UserError where weights do not fit the
    configuration, or where the checkpoint is not the one that the artifact was made from.
    """
    with readable(lm.file(CONFIG)) as file:
        config = json.loads(file.read_text())
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
    return (_pretrained(lm, config, root) if "name_or_path" in config else _native(lm, config)).eval()


def _native(lm: Artifact, config: dict[str, Any]) -> BlockwiseLM:
    with readable(lm.file(CONFIG)):
        model = BlockwiseLM(ModelConfig.from_json(config))
    _fill(model, lm)
    return model


def _pretrained(lm: Artifact, values: dict[str, Any], root: Path) -> PretrainedLM:
    """A pretrained model; UserError where its checkpoint is not the one that ``lm`` was made from."""
    digests = values.pop("checkpoint", None)
    with readable(lm.file(CONFIG)):
        config = PretrainedConfig.from_json(values)
    if digests is None:
        from transformers import CONFIG_MAPPING

        with readable(lm.file(HF_CONFIG)) as file:
            hf_values = json.loads(file.read_text())
            model = empty_model(CONFIG_MAPPING[hf_values["model_type"]].from_dict(hf_values), config)
        _fill(model, lm, assign=True)
        return model
    checkpoint = config.checkpoint.under(root)
    if weight_digests(checkpoint) != digests:
        raise UserError(
            f"{checkpoint}: its weights are not those that {lm.path} was made from; "
            "restore them, or run `dvc repro`"
        )
    model = PretrainedLM(load_weights(checkpoint), config)
    _fill(model.translators, lm)
    return model


def _fill(module: nn.Module, lm: Artifact, assign: bool = False) -> None:
    with readable(lm.file(WEIGHTS)) as file:
        weights = load_file(file)
    try:
        module.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        raise UserError(f"{lm.file(WEIGHTS)} does not fit {lm.file(CONFIG)}: {error}") from None
