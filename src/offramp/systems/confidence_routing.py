"""The confidence-routed transformer: a model with a shallow and a deep exit, and the losses it is trained by.

Source: the report ``character-systems``, its parts on confidence routing and on training losses for it. One
head serves all layers; with h_k the states after layer k (B, T, D),

    z_k = head(h_k)                                      (B, T, V)
    c   = max softmax(z_S)                               (B, T) the confidence at the shallow exit S
    a token leaves after layer S where c >= threshold, else after the last layer L
    loss = sum_k w_k CE(z_k), the mean over tokens

    variant            w_k                        the report's name
    shallow and deep   1/2 at S and L             standard routing
    every layer        1                          full LPT: L times the scale of a mean
    mean of layers     1/L                        none: the same without that scale
    routing aware      1 at S and L, else 1/2     LPT + routing aware

The pipeline trains the same models by ``pretrain.method: joint`` with ``pretrain.exit_weights`` and routes
them with ``exits.confidence: max_prob``. What is here trains several random seeds at once and routes by the
raw confidence, as the report does; tokens that left are not computed (``routing.executor``), where the report
computed every layer for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM
from offramp.routing.executor import Arrivals, Decision, Policy
from offramp.states.statistics import Readout, predictions
from offramp.systems.objectives import Carried, Objective, cross_entropy

VARIANTS = ("shallow and deep", "every layer", "mean of layers", "routing aware")


def loss_weights(variant: str, layers: int, shallow: int) -> tuple[float, ...]:
    """w_k of layers 1..L; the shallow exit is after layer ``shallow``, counted from 1.

    Raises UserError for an unknown variant, and for a shallow exit that is not before the last layer.
    """
    if variant not in VARIANTS:
        raise UserError(f"routing loss = {variant!r} is not known; choose from {', '.join(VARIANTS)}")
    if not 0 < shallow < layers:
        raise UserError(
            f"shallow exit = {shallow}: a model of {layers} layers can have it after layer 1 to {layers - 1}"
        )
    at_exit, elsewhere = {
        "shallow and deep": (0.5, 0.0),
        "every layer": (1.0, 1.0),
        "mean of layers": (1 / layers, 1 / layers),
        "routing aware": (1.0, 0.5),
    }[variant]
    return tuple(at_exit if layer in (shallow, layers) else elsewhere for layer in range(1, layers + 1))


def routed_objective(weights: Sequence[float], shallow: int, threshold: float) -> Objective:
    """The loss of the module's table, and logits as routing takes them, with every layer computed for every
    token.

    For a ``BlockwiseLM`` of one layer per block. A token's logits do not depend on who left, as they do in
    the executor, where later tokens attend to propagated keys and values. So this is for choosing among
    checkpoints, not for reporting.
    """

    def loss(model: BlockwiseLM, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        terms = [
            weight * cross_entropy(model.logits(layer, state), targets)
            for layer, (weight, state) in enumerate(zip(weights, model(tokens)))
            if weight
        ]
        return torch.stack(terms).sum(), ()

    def logits(model: BlockwiseLM, tokens: Tensor) -> Tensor:
        states = model(tokens)
        early = model.logits(shallow - 1, states[shallow - 1])
        late = model.logits(len(states) - 1, states[-1])
        leaves = early.softmax(-1).amax(-1, keepdim=True) >= threshold
        return torch.where(leaves, early, late)

    return Objective(loss, logits)


def with_exits(model: BlockwiseLM, block_layers: Sequence[int]) -> BlockwiseLM:
    """A model with the same weights whose exits are after other layers: ``model``'s layers, cut into other
    blocks.

    It is for models with one head and no norm of its own per exit (``norm: post``). Raises UserError where
    ``block_layers`` do not add up to the model's layers.
    """
    layers = [layer for block in model.layers for layer in block]
    if sum(block_layers) != len(layers):
        raise UserError(
            f"block_layers = {list(block_layers)} has {sum(block_layers)} layers, the model has {len(layers)}"
        )
    cut = BlockwiseLM(replace(model.config, block_layers=tuple(block_layers)))
    cut.embedding, cut.heads = model.embedding, model.heads
    rest = iter(layers)
    cut.blocks = nn.ModuleList(nn.ModuleList(next(rest) for _ in range(count)) for count in block_layers)
    return cut


class MaxProbPolicy(Policy):
    """A token leaves at an exit where its largest probability reaches the exit's threshold."""

    reads_out = True

    def __init__(self, model: BlockwiseLM, thresholds: Sequence[float]):
        """``thresholds`` has one per exit but the last; above 1 nobody leaves.

        Raises UserError for another number of them.
        """
        exits = model.config.num_blocks - 1
        if len(thresholds) != exits:
            raise UserError(
                f"thresholds = {list(thresholds)}: give one for each of the {exits} exits before the last"
            )
        self.model, self.thresholds = model, thresholds
        self._readouts = [Readout(model.readout_matrix(exit)) for exit in range(exits)]

    def decide(self, arrivals: Arrivals) -> Decision:
        assert (
            arrivals.read is not None and arrivals.targets is not None
        )  # the policy reads out, and is evaluated
        inputs = self.model.readout_input(arrivals.exit, arrivals.read)
        loss, argmax, confidence = predictions(inputs, self._readouts[arrivals.exit], arrivals.targets)
        return Decision(confidence >= self.thresholds[arrivals.exit], confidence, loss, argmax)
