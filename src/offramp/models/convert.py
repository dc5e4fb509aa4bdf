"""From a GGUF file to a checkpoint folder: fp32 safetensors, ``config.json`` and ``tokenizer.json``.

Transformers dequantises a GGUF file each time it is loaded, which takes a hundred times as long as reading
the result.
"""

from __future__ import annotations

from pathlib import Path

import torch

from offramp.artifacts.files import written_whole
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import gguf_tokenizer
from offramp.errors import UserError
from offramp.models.pretrained import load_weights


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the checkpoint of a GGUF file to the folder ``out``, whole or not at all.

    UserError where the folder exists, and for a file that is missing, damaged or of an architecture that is
    not supported.
    """
    if out.exists():
        raise UserError(f"{out} exists; delete it to convert again, or name another folder")
    if not gguf.is_file():
        raise UserError(f"{gguf}: no such file; give a GGUF file")
    checkpoint = Checkpoint(str(gguf.parent), gguf.name)
    read_config(checkpoint)
    from transformers import AutoModelForCausalLM

    tokenizer = gguf_tokenizer(checkpoint)
    loaded = load_weights(checkpoint)
    # a model marked as quantised cannot be saved, and these weights no longer are quantised
    del loaded.config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    with written_whole(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
