"""The report exit-labels from its first exit on, as it was run: labels, threshold, hard tokens, second block,
"TRUE" early exit.

Shapes: B sequences, T positions, N tokens, D width.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from offramp.artifacts.files import write_json
from offramp.exits.ranking import auroc, loss_gap, most_confident
from offramp.models.native import BlockwiseLM
from offramp.models.store import load_model
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Work
from offramp.states.statistics import Readout, predictions
from offramp.training.loop import Row, Selection, Training
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.cache import identity
from studies.common.first_block import (
    BlockTraining,
    EmbeddedWindows,
    FirstBlock,
    WordWindows,
    block_ppl,
    train_block,
)
from studies.common.tables import Values

REPORT_ARMS = ("distill", "loss", "softmax")
"""What the report's exit classifier learns: max p or p(correct); ``softmax`` has no classifier."""

ARMS = (*REPORT_ARMS, "correct")
"""The report's arms, and a classifier that learns whether the argmax is right."""


@dataclass(frozen=True)
class Procedure:
    """What the report does after its first block."""

    first: BlockTraining
    """How the first block was trained; the second is, too, but for what follows."""
    later_rate: float
    """Learning rate of the second block, relative to the first's."""
    later_max_epochs: int
    exit_epochs: int
    """Of the exit classifier."""
    hard_ratio: float
    """Share of the tokens, those of the lowest confidence, that the second block learns from."""

    @classmethod
    def of(cls, block: Mapping[str, Any], settings: Mapping[str, Any], corpus: str, seed: int) -> Procedure:
        """That of ``settings``, whose epochs are by corpus, after a first block of the settings ``block``."""
        epochs = settings["later_max_epochs"][corpus]
        return cls(BlockTraining.of(block, seed), **{**settings, "later_max_epochs": epochs})

    @property
    def second(self) -> BlockTraining:
        rate = self.first.learning_rate * self.later_rate
        return replace(self.first, learning_rate=rate, max_epochs=self.later_max_epochs)


@dataclass
class FirstExit:
    """Every token of a split after block 0: states (N, D), and of the readout (N,)."""

    states: Tensor
    targets: Tensor
    loss: Tensor
    argmax: Tensor
    max_prob: Tensor

    @property
    def right(self) -> Tensor:
        """(N,): whether the argmax is the target."""
        return self.argmax == self.targets

    def label(self, arm: str) -> Tensor:
        """What the classifier of ``arm`` is taught, (N,); for ``softmax``, which has none, its confidence."""
        if arm == "correct":
            return self.right.float()
        return torch.exp(-self.loss) if arm == "loss" else self.max_prob


@torch.no_grad()
def first_exit(model: BlockwiseLM, windows: WordWindows, batch_size: int) -> FirstExit:
    """Every token of ``windows`` after block 0, ``batch_size`` sequences at a time."""
    readout, parts = Readout(model.readout_matrix(0)), []
    batches = torch.arange(len(windows)).split(batch_size)
    for indices in tqdm(batches, desc="first exit", unit="batch", disable=None):
        tokens, targets = windows.batch(indices)
        states = model.run_block(0, model.embed(tokens)).flatten(0, 1)
        parts.append((states, targets.flatten(), *predictions(states, readout, targets.flatten())))
    return FirstExit(*(torch.cat(part) for part in zip(*parts)))


@dataclass
class ReportConfidence:
    """sigmoid(w h + b), or with no classifier the largest probability of the exit's softmax."""

    classifier: nn.Linear | None

    @torch.no_grad()
    def __call__(self, states: Tensor, max_prob: Tensor) -> Tensor:
        """(N,) of states (N, D) and max_prob (N,)."""
        return max_prob if self.classifier is None else torch.sigmoid(self.classifier(states)).squeeze(-1)

    @property
    def flops(self) -> int:
        """Of one decision."""
        return 2 * self.classifier.in_features if self.classifier else 0


def train_report_classifier(
    states: Tensor, labels: Tensor, binary: bool, window: int, procedure: Procedure
) -> tuple[nn.Linear, list[float]]:
    """The report's exit classifier (its mode "post") and its mean loss per token in every epoch.

    A linear layer on raw states (N, D), the sum of BCE or of squared errors of the sigmoid, Adam, a fixed
    number of epochs over all tokens. Those that stopped the block's training are among them: a flaw of the
    report.
    """
    training = procedure.first
    torch.manual_seed(training.seed)
    classifier = nn.Linear(states.shape[1], 1)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=training.learning_rate)
    losses: list[float] = []
    sequences, wanted = states.unflatten(0, (-1, window)), labels.unflatten(0, (-1, window))

    def step(epoch: int) -> None:
        total = 0.0
        for indices in torch.randperm(len(sequences)).split(training.batch_size):
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

    def look(epoch: int) -> tuple[list[Row], None]:
        return [], None

    epochs = procedure.exit_epochs
    Training(step=step, look=look, steps=epochs, looks=(), selection=Selection[None]()).run()
    return classifier, losses


class RepackedTokens:
    """Hard tokens in scan order, cut into new sequences of T; neighbours and distances are lost, a flaw of
    the report."""

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
class ReportRouted:
    """The report's evaluation: per token (N,) its exit, loss and argmax there, and the loss at every exit."""

    exit: Tensor
    loss: Tensor
    argmax: Tensor
    losses: list[Tensor]
    work: Work
    """Counted by hooks where layers and readouts run."""


@torch.no_grad()
def true_early_exit(
    model: BlockwiseLM, confidence: ReportConfidence, threshold: float, windows: WordWindows, batch_size: int
) -> ReportRouted:
    """The report's "TRUE early exit", with two flaws: every block and readout runs on every token, and a
    token that left passes on the INPUT of the block it left after."""
    blocks, work, parts = model.config.num_blocks, Work(), []
    readouts = [Readout(model.readout_matrix(block)) for block in range(blocks)]
    hooks = _count_layers(model, work)
    try:
        everything = torch.arange(len(windows)).split(batch_size)
        for indices in tqdm(everything, desc="early exit", unit="batch", disable=None):
            tokens, targets = windows.batch(indices)
            x, wanted = model.embed(tokens), targets.flatten()
            exit = torch.full_like(wanted, blocks - 1)
            read = []
            for block in range(blocks):
                entered, x = x, model.run_block(block, x)
                read.append(predictions(x.flatten(0, 1), readouts[block], wanted))
                work.count_readouts(block, len(wanted))
                if block < blocks - 1:
                    sure = confidence(x.flatten(0, 1), read[block][2]) >= threshold
                    leaves = sure & (exit == blocks - 1)
                    work.decided_tokens += len(wanted)
                    exit[leaves] = block
                    x = torch.where((exit <= block).view(tokens.shape).unsqueeze(-1), entered, x)
            losses, argmax = (torch.stack([exits[field] for exits in read]) for field in (0, 1))
            work.tokens += len(wanted)
            parts.append((exit, losses.gather(0, exit[None])[0], argmax.gather(0, exit[None])[0], *losses))
    finally:
        for hook in hooks:
            hook.remove()
    exit, loss, argmax, *losses = (torch.cat(part) for part in zip(*parts))
    return ReportRouted(exit, loss, argmax, losses, work)


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
    procedure: Procedure,
    snapshots: Snapshots,
) -> Values:
    """One arm from the trained block 0 (``base`` stays as it is): values by key, without the arm's name."""
    model, batch, window = copy.deepcopy(base), procedure.first.batch_size, validation.window
    confidence, values = ReportConfidence(None), {}
    if arm != "softmax":
        labels = first.label(arm)
        confidence.classifier, losses = train_report_classifier(
            first.states, labels, arm == "correct", window, procedure
        )
        values = {
            "label_mean": labels.mean().item(),
            "exit_loss_first": losses[0],
            "exit_loss_last": losses[-1],
        }
    sure = confidence(first.states, first.max_prob)
    threshold = float(np.quantile(sure.numpy(), procedure.hard_ratio))
    values |= leaving_values(sure.numpy(), threshold, first.loss.double().numpy(), first.right.numpy())
    inputs = RepackedTokens(first.states, first.targets, sure < threshold, window)
    run = train_block(model, 1, inputs, procedure.second, snapshots)
    routed = true_early_exit(model, confidence, threshold, validation, batch)
    everything, layers = torch.arange(len(validation)), model.config.block_layers
    targets = validation.batch(everything)[1].flatten()
    shallow = (routed.exit == 0).double().mean().item()
    flops = executed_flops(model, routed.work, confidence.flops)
    return values | {
        "threshold": threshold,
        "block1_val_ppl": run.best_ppl,
        "block1_epochs": float(len(run.curve)),
        "final_ppl": _ppl(routed.loss),
        "accuracy": (routed.argmax == targets).double().mean().item(),
        "shallow_ratio": shallow,
        "layer_saving": shallow * layers[1] / sum(layers),
        "executed_layer_saving": layer_saving(model, routed.work),
        "flop_saving": 1 - flops / full_depth_flops(model, routed.work.tokens, window),
        "block0_after_ppl": _ppl(routed.losses[0]),
        "full_heldout_ppl": block_ppl(model, 1, _AfterBlock0(model, validation), everything, batch),
    }


def leaving_values(sure: np.ndarray, threshold: float, loss: np.ndarray, right: np.ndarray) -> Values:
    """Whom a confidence ``sure`` (N,) lets leave, by the first exit's ``loss`` (N,) in nats and whether its
    argmax is ``right`` (N,).

    ``leaver_error``: share of wrong predictions among tokens that leave. ``leaver_auc``: probability that
    among them a right one has the higher confidence than a wrong one, one half where the confidence cannot
    tell. ``kept_oracle_share``: mean loss of kept tokens minus that of leaving ones, over what the true loss
    gives at the same share. None where there is nothing to tell apart.
    """
    leaves = sure >= threshold
    if leaves.all() or not leaves.any():
        return dict.fromkeys(("leaver_error", "leaver_auc", "kept_oracle_share"))
    oracle = most_confident(-loss, int(leaves.sum()))
    ranking = auroc(sure[leaves], right[leaves])
    return {
        "leaver_error": float(1 - right[leaves].mean()),
        "leaver_auc": None if math.isnan(ranking) else ranking,
        "kept_oracle_share": loss_gap(leaves, loss) / loss_gap(oracle, loss),
    }


def _ppl(losses: Tensor) -> float:
    return math.exp(losses.double().mean().item())


def published_values(
    block: FirstBlock, procedure: Procedure, arms: Sequence[str], cache: Path
) -> tuple[Values, list[dict[str, Any]]]:
    """All values of the published protocol but comparisons of arms, and a row per arm.

    Every finished arm is kept as ``cache``/exit_labels/<arm>.json, so that an interrupted run goes on arm by
    arm.
    """
    model, batch, place = load_model(block.block0), procedure.first.batch_size, cache / "exit_labels"
    everything = torch.arange(len(block.validation))
    before = block_ppl(model, 0, EmbeddedWindows(model, block.validation), everything, batch)
    known = identity(__name__, block0=block.block0.digest, procedure=asdict(procedure))
    first: FirstExit | None = None
    by_arm = {}
    for arm in arms:
        values = _finished(place / f"{arm}.json", known)
        if values is None:
            first = first or first_exit(model, block.train, batch)
            snapshots = Snapshots(place / "resume" / snapshot_key({**known, "arm": arm}), 0.0)
            values = run_arm(arm, model, first, block.validation, procedure, snapshots)
            write_json(place / f"{arm}.json", {"made_from": known, "values": values})
            snapshots.delete()
        by_arm[arm] = values
    full, after = (
        float(np.mean([values[name] for values in by_arm.values()]))
        for name in ("full_heldout_ppl", "block0_after_ppl")
    )
    found = {f"{name}.{arm}": value for arm, values in by_arm.items() for name, value in values.items()} | {
        "block0_val_ppl": block.block0.meta["block0_val_ppl"],
        "block0_heldout_ppl": before,
        "full_heldout_ppl": full,
        "block0_drift": after / before - 1,
    }
    return found, [{"arm": arm, **values} for arm, values in by_arm.items()]


def _finished(file: Path, known: dict[str, Any]) -> Values | None:
    """The values of an arm that ``file`` keeps, if they were made under the identity ``known``, else None."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept["values"] if kept.get("made_from") == json.loads(json.dumps(known)) else None
