"""Low-rank adapters (LoRA, arXiv 2106.09685) on the matrices of a model's layers, by ``peft``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise


def add_adapters(model: Blockwise, rank: int, alpha: float) -> Callable[[], object]:
    """Give every matrix of the layers an adapter, the identity at first, and freeze all else in them.

    Returns the function that merges the adapters into the matrices and removes them: what is saved is an
    ordinary model, and nothing after training knows of adapters. Raises UserError where peft is not
    installed.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise UserError(
            "pretrain.lora needs the package peft: pip install peft, or set pretrain.lora: null"
        ) from None
    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=adaptable(model.blocks))
    return LoraModel(model.blocks, config, "adapter").merge_and_unload


def adaptable(layers: nn.Module) -> list[str]:
    """Names of the matrices that are called as modules. Those of which a layer uses parts are not and could
    not be adapted (the joint query, key and value matrix of GPT-2 and GPT-NeoX)."""
    return [
        name
        for name, module in layers.named_modules()
        if getattr(module, "weight", None) is not None
        and module.weight.ndim == 2
        and not name.endswith(".projections")
    ]
