"""Language models as artifacts: safetensors weights beside their configuration."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from offramp.errors import UserError
from offramp.lineage.artifact import Artifact
from offramp.models.native import BlockwiseLM, ModelConfig


def save_model(model: BlockwiseLM, folder: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()},
              folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=1, sort_keys=True) + "\n")


def load_model(lm: Artifact) -> BlockwiseLM:
    """The model of an ``lm`` artifact, on the CPU, in evaluation mode."""
    model = BlockwiseLM(ModelConfig.from_json(json.loads(lm.file("config.json").read_text())))
    weights = load_file(lm.file("weights.safetensors"))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{lm.file('weights.safetensors')} does not fit {lm.file('config.json')}: {error}") from None
    return model.eval()
