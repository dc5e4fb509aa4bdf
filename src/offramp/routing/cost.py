"""The cost model: floating-point operations of what was executed (a multiply-add counts two).

Counts matrix products, as ``torch.utils.flop_counter`` does; norms, rotations and activations are not counted.
"""

from __future__ import annotations

from offramp.models.native import ModelConfig
from offramp.routing.executor import Work


def executed_flops(config: ModelConfig, work: Work, decision_flops: int = 0) -> int:
    """FLOPs of a pass that did ``work``; a decision costs ``decision_flops`` besides any readout."""
    width = config.width
    per_token = 2 * (2 * width * width + 3 * width * config.ffn_width)  # query and output projection, gated FFN
    per_key_value = 2 * (2 * width * width)
    return (
        sum(work.layer_tokens) * per_token
        + sum(work.key_value_tokens) * per_key_value
        + work.attention_pairs * 2 * 2 * width
        + work.readout_tokens * 2 * width * config.vocab_size
        + work.decided_tokens * decision_flops
    )


def full_depth_flops(config: ModelConfig, tokens: int, window: int) -> int:
    """FLOPs of the plain forward pass: every layer on every token, one readout, nothing decided."""
    layers = sum(config.block_layers)
    return executed_flops(config, Work(layer_tokens=[tokens] * layers, key_value_tokens=[tokens] * layers,
                                       attention_pairs=layers * tokens * window, readout_tokens=tokens, tokens=tokens))


def layer_saving(config: ModelConfig, work: Work) -> float:
    """1 - layers run per token / all layers (the seeds' "compute savings"; ignores readouts and keys/values)."""
    return 1 - sum(work.layer_tokens) / (work.tokens * sum(config.block_layers))
