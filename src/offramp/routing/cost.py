"""The cost model: floating-point operations of what was executed (a multiply-add counts two).

Counts matrix products, as ``torch.utils.flop_counter`` does; norms, rotations and activations are not
counted.
"""

from __future__ import annotations

from offramp.models.blockwise import Blockwise
from offramp.nn.layers import LayerCosts
from offramp.routing.executor import Work


def layer_costs(model: Blockwise) -> list[LayerCosts]:
    """FLOPs of every layer's parts, from the first layer to the last."""
    return [layer.costs for layers in model.layers for layer in layers]


def executed_flops(model: Blockwise, work: Work, decision_flops: int = 0) -> int:
    """FLOPs of a pass that did ``work``; a decision costs ``decision_flops`` besides any readout."""
    costs = layer_costs(model)
    of_exit_layers = 0
    for exit, (tokens, key_values) in enumerate(zip(work.exit_layer_tokens, work.exit_key_value_tokens)):
        if (layer := model.exit_layer(exit)) is not None:
            of_exit_layers += tokens * layer.costs.token + key_values * layer.costs.key_value
    return (
        sum(tokens * cost.token for tokens, cost in zip(work.layer_tokens, costs))
        + sum(tokens * cost.key_value for tokens, cost in zip(work.key_value_tokens, costs))
        + of_exit_layers
        + work.attention_pairs * costs[0].pair  # the same in every layer
        + sum(tokens * model.readout_flops(exit) for exit, tokens in enumerate(work.readouts))
        + work.decided_tokens * decision_flops
    )


def full_depth_flops(model: Blockwise, tokens: int, window: int) -> int:
    """FLOPs of the plain forward pass: every layer on every token, one readout, nothing decided."""
    layers, last = sum(model.config.block_layers), model.config.num_blocks - 1
    return executed_flops(
        model,
        Work(
            layer_tokens=[tokens] * layers,
            key_value_tokens=[tokens] * layers,
            attention_pairs=layers * tokens * window,
            readouts=[0] * last + [tokens],
            tokens=tokens,
        ),
    )


def exit_costs(
    model: Blockwise,
    window: int,
    reads_out: bool,
    decision_flops: int,
    *,
    first: int = 0,
    kv: str = "propagate",
) -> list[float]:
    """FLOPs of a token that leaves after exit k, for every k, as shares of the plain full-depth pass.

    Counts its layers, with ``routing.kv: propagate`` its keys and values in all later ones, one decision and
    (``reads_out``) one readout per exit asked; exits before ``first`` are not asked. Where exits have layers
    of their own, a readout is one of these too, and their keys and values are made at every exit asked. With
    ``recompute`` this is the least, that of a token after which none of its sequence goes deeper: any other
    is carried through the later layers whole.
    """
    sizes = model.config
    whole, last, out = full_depth_flops(model, 1, window), sizes.num_blocks - 1, []
    layers = sum(sizes.block_layers)
    for exit in range(last + 1):
        run, asked = sum(sizes.block_layers[: exit + 1]), max(0, min(exit + 1, last) - first)
        readouts = (
            [0] * first + [1] * asked + [1] * (exit == last) if reads_out and asked else [0] * exit + [1]
        )
        in_exit_layers = [count if model.exit_layer(place) else 0 for place, count in enumerate(readouts)]
        known = [int(place >= first and model.exit_layer(place) is not None) for place in range(last)]
        in_exit_layers += [0] * (last - len(in_exit_layers))
        owed = layers if kv == "propagate" else run
        work = Work(
            layer_tokens=[1] * run,
            key_value_tokens=[1] * owed,
            attention_pairs=(run + sum(in_exit_layers)) * window,
            readouts=readouts,
            decided_tokens=asked,
            tokens=1,
            exit_layer_tokens=in_exit_layers,
            exit_key_value_tokens=known,
        )
        out.append(executed_flops(model, work, decision_flops) / whole)
    return out


def layer_saving(model: Blockwise, work: Work) -> float:
    """1 - layers run per token / all layers: the reports' "compute savings".

    Readouts, and keys and values of tokens that left, are not counted.
    """
    return 1 - sum(work.layer_tokens) / (work.tokens * sum(model.config.block_layers))
