"""The model that the control ends with as a checkpoint of its own, so that exits can be fitted to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from offramp.artifacts.artifact import Artifact, open_artifact
from offramp.models.pretrained import PretrainedConfig, PretrainedLM
from offramp.models.store import CONFIG, HF_CONFIG, WEIGHTS
from studies.checkpoint.settings import CONTROL, LM, StudySettings, checkpoint_of


def run(folder: Path, settings: StudySettings, device_name: str) -> None:
    """Write the folder ``exported``: weights as Transformers writes them, and the checkpoint's tokenizer."""
    lm = open_artifact(folder / CONTROL / LM, "lm")
    save_as_checkpoint(lm, checkpoint_of(settings), folder / "exported")


def save_as_checkpoint(lm: Artifact, source: Path, out: Path) -> None:
    """Write a trained model as a checkpoint that Transformers loads; what belongs to exits alone is left out.

    ``source`` is the folder of the checkpoint that the model began as: its tokenizer is copied.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = json.loads(lm.file(HF_CONFIG).read_text())
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING[values["model_type"]].from_dict(values))
    model = PretrainedLM(base, PretrainedConfig.from_json(json.loads(lm.file(CONFIG).read_text())))
    model.load_state_dict(load_file(lm.file(WEIGHTS)))  # the modules of ``base``, not copies
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    base.save_pretrained(partial)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
