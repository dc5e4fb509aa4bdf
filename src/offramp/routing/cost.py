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


def exit_costs(config: ModelConfig, window: int, reads_out: bool, decision_flops: int) -> list[float]:
    """FLOPs of a token that leaves after exit k, for every k, as shares of the plain full-depth pass.

    Counts its layers, keys and values in all later ones, one decision and (``reads_out``) one readout per exit asked.
    """
    whole, last, out = full_depth_flops(config, 1, window), config.num_blocks - 1, []
    layers = sum(config.block_layers)
    for exit in range(last + 1):
        run, asked = sum(config.block_layers[: exit + 1]), min(exit + 1, last)
        readouts = asked + (exit == last) if reads_out else 1
        work = Work([1] * run, [1] * layers, run * window, readouts, asked, 1)
        out.append(executed_flops(config, work, decision_flops) / whole)
    return out


def layer_saving(config: ModelConfig, work: Work) -> float:
    """1 - layers run per token / all layers (the seeds' "compute savings"; ignores readouts and keys/values)."""
    return 1 - sum(work.layer_tokens) / (work.tokens * sum(config.block_layers))
