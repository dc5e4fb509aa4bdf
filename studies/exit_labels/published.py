"""Seed 003 from its first exit on, as it was run: labels, threshold, hard tokens, second block, "TRUE" early exit.

Shapes: B sequences, T positions, N tokens, D width.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from offramp.artifacts.files import write_json
from offramp.models.native import BlockwiseLM
from offramp.models.store import load_model
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Work
from offramp.states.statistics import Readout, predictions
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.first_block import EmbeddedWindows, Published, WordWindows, block_ppl, train_block

ARMS = ("distill", "loss", "softmax", "correct")
"""What the exit classifier learns: max p, p(correct), or whether the argmax is right; ``softmax`` has no classifier."""


@dataclass
class FirstExit:
    """Every token of a split after block 0: states (N, D), and of the readout (N,)."""

    states: Tensor
    targets: Tensor
    loss: Tensor
    argmax: Tensor
    max_prob: Tensor

    def label(self, arm: str) -> Tensor:
        """What the classifier of ``arm`` is taught, (N,); for ``softmax``, which has none, its confidence."""
        if arm == "correct":
            return (self.argmax == self.targets).float()
        return torch.exp(-self.loss) if arm == "loss" else self.max_prob


@torch.no_grad()
def first_exit(model: BlockwiseLM, windows: WordWindows, batch_size: int) -> FirstExit:
    readout, parts = Readout(model.readout_matrix(0)), []
    for indices in tqdm(
        torch.arange(len(windows)).split(batch_size), desc="first exit", unit="batch", disable=None
    ):
        tokens, targets = windows.batch(indices)
        states = model.run_block(0, model.embed(tokens)).flatten(0, 1)
        parts.append((states, targets.flatten(), *predictions(states, readout, targets.flatten())))
    return FirstExit(*(torch.cat(part) for part in zip(*parts)))


@dataclass
class SeedConfidence:
    """sigmoid(w h + b), or with no classifier the largest probability of the exit's softmax."""

    classifier: nn.Linear | None

    @torch.no_grad()
    def __call__(self, states: Tensor, max_prob: Tensor) -> Tensor:
        """(N,) of states (N, D) and max_prob (N,)."""
        return max_prob if self.classifier is None else torch.sigmoid(self.classifier(states)).squeeze(-1)

    @property
    def flops(self) -> int:
        return 2 * self.classifier.in_features if self.classifier else 0


def train_seed_classifier(
    states: Tensor, labels: Tensor, binary: bool, settings: dict[str, Any]
) -> tuple[nn.Linear, list[float]]:
    """The seed's exit classifier (mode "post") and its mean loss per token in every epoch.

    A linear layer on raw states (N, D), the sum of BCE or of squared errors of the sigmoid, Adam, a fixed number of
    epochs over all tokens, those that stopped the block's training included (flaw I8).
    """
    torch.manual_seed(settings["seed"])
    classifier = nn.Linear(states.shape[1], 1)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=settings["learning_rate"])
    window, losses = settings["window"], []
    sequences, wanted = states.unflatten(0, (-1, window)), labels.unflatten(0, (-1, window))
    for _ in range(settings["exit_epochs"]):
        total = 0.0
        for indices in torch.randperm(len(sequences)).split(settings["batch_size"]):
            score = classifier(sequences[indices]).squeeze(-1)
            loss = (
                F.binary_cross_entropy_with_logits(score, wanted[indices], reduction="sum")
                if binary
                else F.mse_loss(torch.sigmoid(score), wanted[indices], reduction="sum")
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        losses.append(total / len(labels))
    return classifier, losses


class RepackedTokens:
    """Hard tokens in scan order, cut into new sequences of T; neighbours and distances are lost (flaw I7)."""

    def __init__(self, states: Tensor, targets: Tensor, hard: Tensor, window: int):
        """states (N, D), targets and hard (N,); the remainder is dropped."""
        rows = int(hard.sum()) // window
        self._states = states[hard][: rows * window].unflatten(0, (-1, window))
        self._targets = targets[hard][: rows * window].unflatten(0, (-1, window))

    def __len__(self) -> int:
        return len(self._states)

    def states(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._states[indices], self._targets[indices]


@dataclass
class SeedRouted:
    """The seed's evaluation: per token (N,) its exit, loss and argmax there, and the loss at every exit."""

    exit: Tensor
    loss: Tensor
    argmax: Tensor
    losses: list[Tensor]
    work: Work
    """Counted by hooks where layers and readouts run."""


@torch.no_grad()
def true_early_exit(
    model: BlockwiseLM, confidence: SeedConfidence, threshold: float, windows: WordWindows, batch_size: int
) -> SeedRouted:
    """The seed's "TRUE early exit": every block and readout on every token (flaw I3), and a token that left passes on
    the INPUT of the block it left after (flaw I4)."""
    blocks, work, parts = model.config.num_blocks, Work(), []
    readouts = [Readout(model.readout_matrix(block)) for block in range(blocks)]
    hooks = _count_layers(model, work)
    try:
        for indices in tqdm(
            torch.arange(len(windows)).split(batch_size), desc="early exit", unit="batch", disable=None
        ):
            tokens, targets = windows.batch(indices)
            x, wanted = model.embed(tokens), targets.flatten()
            exit = torch.full_like(wanted, blocks - 1)
            found = []
            for block in range(blocks):
                entered, x = x, model.run_block(block, x)
                found.append(predictions(x.flatten(0, 1), readouts[block], wanted))
                work.count_readouts(block, len(wanted))
                if block < blocks - 1:
                    leaves = (confidence(x.flatten(0, 1), found[block][2]) >= threshold) & (
                        exit == blocks - 1
                    )
                    work.decided_tokens += len(wanted)
                    exit[leaves] = block
                    x = torch.where((exit <= block).view(tokens.shape).unsqueeze(-1), entered, x)
            losses, argmax = (torch.stack([exits[field] for exits in found]) for field in (0, 1))
            work.tokens += len(wanted)
            parts.append((exit, losses.gather(0, exit[None])[0], argmax.gather(0, exit[None])[0], *losses))
    finally:
        for hook in hooks:
            hook.remove()
    exit, loss, argmax, *losses = (torch.cat(part) for part in zip(*parts))
    return SeedRouted(exit, loss, argmax, losses, work)


def _count_layers(model: BlockwiseLM, work: Work) -> list[Any]:
    """Hooks that count every token a layer is really called on."""

    def count(number: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor) -> None:
            batch, length, _ = arguments[0].shape
            work.count_layer(number, batch * length, batch * length, batch * length * length)

        return hook

    layers = [layer for block in model.blocks for layer in block]
    return [layer.register_forward_hook(count(number)) for number, layer in enumerate(layers)]


class _AfterBlock0:
    """Inputs of block 1 if nobody leaves."""

    def __init__(self, model: BlockwiseLM, windows: WordWindows):
        self.model, self.windows = model, windows

    def __len__(self) -> int:
        return len(self.windows)

    def states(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        tokens, targets = self.windows.batch(indices)
        return self.model.run_block(0, self.model.embed(tokens)), targets


def run_arm(
    arm: str,
    base: BlockwiseLM,
    first: FirstExit,
    validation: WordWindows,
    settings: dict[str, Any],
    snapshots: Snapshots,
) -> dict[str, float]:
    """One arm from the trained block 0 (``base`` stays as it is): values by key, without the arm's name."""
    model, batch, labels = copy.deepcopy(base), settings["batch_size"], first.label(arm)
    confidence, values = SeedConfidence(None), {}
    if arm != "softmax":
        confidence.classifier, losses = train_seed_classifier(
            first.states, labels, arm == "correct", settings
        )
        values = {
            "label_mean": labels.mean().item(),
            "exit_loss_first": losses[0],
            "exit_loss_last": losses[-1],
        }
    sure = confidence(first.states, first.max_prob)
    threshold = float(np.quantile(sure.numpy(), settings["hard_ratio"]))
    inputs = RepackedTokens(first.states, first.targets, sure < threshold, settings["window"])
    options = {**settings, "max_epochs": settings["later_max_epochs"]}
    run = train_block(
        model, 1, inputs, options, settings["learning_rate"] * settings["later_rate"], snapshots
    )
    routed = true_early_exit(model, confidence, threshold, validation, batch)
    targets = validation.batch(torch.arange(len(validation)))[1].flatten()
    layers = model.config.block_layers
    return values | {
        "threshold": threshold,
        "block1_val_ppl": run.best_ppl,
        "block1_epochs": float(len(run.curve)),
        "final_ppl": _ppl(routed.loss),
        "accuracy": (routed.argmax == targets).double().mean().item(),
        "shallow_ratio": (routed.exit == 0).double().mean().item(),
        "layer_saving": (routed.exit == 0).double().mean().item() * layers[1] / sum(layers),
        "executed_layer_saving": layer_saving(model, routed.work),
        "flop_saving": 1
        - executed_flops(model, routed.work, confidence.flops)
        / full_depth_flops(model, routed.work.tokens, settings["window"]),
        "block0_after_ppl": _ppl(routed.losses[0]),
        "full_heldout_ppl": block_ppl(
            model, 1, _AfterBlock0(model, validation), torch.arange(len(validation)), batch
        ),
    }


def _ppl(losses: Tensor) -> float:
    return math.exp(losses.double().mean().item())


def published_values(base: Published, place: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All keys of the published protocol, and a row per arm.

    Every finished arm is kept as ``place``/arms/<arm>.json, so that an interrupted run goes on arm by arm.
    """
    model, settings = load_model(base.block0), base.settings
    everything = torch.arange(len(base.validation))
    before = block_ppl(model, 0, EmbeddedWindows(model, base.validation), everything, settings["batch_size"])
    first: FirstExit | None = None
    arms = {}
    for arm in ARMS:
        file, identity = place / "arms" / f"{arm}.json", {"block0": base.block0.digest, "settings": settings}
        known = json.loads(file.read_text()) if file.exists() else {}
        if known.get("made_from") != json.loads(json.dumps(identity)):
            first = first or first_exit(model, base.train, settings["batch_size"])
            snapshots = Snapshots(place / "resume" / snapshot_key({**identity, "arm": arm}), 0.0)
            known = {
                "made_from": identity,
                "values": run_arm(arm, model, first, base.validation, settings, snapshots),
            }
            write_json(file, known)
            snapshots.delete()
        arms[arm] = known["values"]
    values = {f"{name}.{arm}": value for arm, found in arms.items() for name, value in found.items()}
    full, after = (
        float(np.mean([found[name] for found in arms.values()]))
        for name in ("full_heldout_ppl", "block0_after_ppl")
    )
    values |= {
        "block0_val_ppl": base.block0.meta["block0_val_ppl"],
        "block0_heldout_ppl": before,
        "full_heldout_ppl": full,
        "block0_drift": after / before - 1,
    }
    return values, [{"arm": arm, **found} for arm, found in arms.items()]
