"""Block-wise training with early exit as the report exit-labels did it, for comparison only.

Every step materialises logits (tokens x vocabulary). The exit classifier's training runs the block and its
head again in every epoch, hard tokens run them once more, and evaluation computes every block and head on
every token. The layers are the library's, so that the comparison is of the procedure and not of the
transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.native import BlockwiseLM


@dataclass
class Evaluated:
    """The exit taken and the loss in nats, both (N,)."""

    exit: Tensor
    loss: Tensor


def block_loss(model: BlockwiseLM, block: int, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy after ``block`` of its inputs (B, T, D), over full logits."""
    logits = model.logits(block, model.run_block(block, hidden))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def train_block(
    model: BlockwiseLM, block: int, hidden: Tensor, targets: Tensor, batch_size: int, steps: int, rate: float
) -> None:
    """Train one block and its head on inputs (N, T, D) and targets (N, T), everything else frozen."""
    parameters = [*model.blocks[block].parameters(), model.readout_matrix(block)]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is trained for trained in parameters))
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    step = 0
    while step < steps:
        for rows in torch.randperm(len(hidden)).split(batch_size)[: steps - step]:
            loss = block_loss(model, block, hidden[rows], targets[rows])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            loss.item()
            step += 1


@torch.no_grad()
def block_nll(model: BlockwiseLM, block: int, hidden: Tensor, targets: Tensor, batch_size: int) -> float:
    """Mean loss in nats after ``block`` of its inputs (N, T, D)."""
    batches = zip(hidden.split(batch_size), targets.split(batch_size))
    return sum(block_loss(model, block, x, y).item() for x, y in batches) / targets.numel()


def train_classifier(
    model: BlockwiseLM, block: int, hidden: Tensor, targets: Tensor, batch_size: int, epochs: int, rate: float
) -> nn.Linear:
    """Linear classifier of "the block's prediction is correct", from the block run again in every epoch."""
    classifier = nn.Linear(model.config.width, 1)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(hidden)).split(batch_size):
            with torch.no_grad():
                x = model.run_block(block, hidden[rows])
                correct = (model.logits(block, x).argmax(-1) == targets[rows]).float()
            loss = F.binary_cross_entropy_with_logits(classifier(x).squeeze(-1), correct, reduction="sum")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
    return classifier


@torch.no_grad()
def hard_tokens(
    model: BlockwiseLM,
    block: int,
    classifier: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    batch_size: int,
    ratio: float,
) -> tuple[Tensor, Tensor, float]:
    """Outputs (B', T, D) and targets of the least confident ``ratio`` of tokens, repacked; the threshold."""
    states, confidences = [], []
    for x in hidden.split(batch_size):
        x = model.run_block(block, x)
        model.logits(block, x)  # the report's block returns its logits with every call
        states.append(x)
        confidences.append(torch.sigmoid(classifier(x)).squeeze(-1))
    x, confidence = torch.cat(states), torch.cat(confidences)
    threshold = float(np.quantile(confidence.numpy(), ratio))
    hard, window = confidence < threshold, hidden.shape[1]
    rows = int(hard.sum()) // window
    return (
        x[hard][: rows * window].view(rows, window, -1),
        targets[hard][: rows * window].view(rows, window),
        threshold,
    )


@torch.no_grad()
def evaluate(
    model: BlockwiseLM,
    classifier: nn.Linear,
    threshold: float,
    hidden: Tensor,
    targets: Tensor,
    batch_size: int,
) -> Evaluated:
    """Run both blocks on every token; one whose confidence suffices takes the logits of block 0."""
    exits, losses = [], []
    for x, y in zip(hidden.split(batch_size), targets.split(batch_size)):
        shallow = model.run_block(0, x)
        leaves = torch.sigmoid(classifier(shallow)).squeeze(-1) >= threshold
        first, last = model.logits(0, shallow), model.logits(1, model.run_block(1, shallow))
        logits = torch.where(leaves.unsqueeze(-1), first, last)
        losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none"))
        exits.append((~leaves).long().flatten())
        (logits.argmax(-1) == y).sum().item()
    return Evaluated(torch.cat(exits), torch.cat(losses))
