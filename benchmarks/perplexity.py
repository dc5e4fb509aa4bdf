"""Routed perplexity: one parallel pass over whole sequences against decoding them token by token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.blockwise_training import ClassifierPolicy
from benchmarks.inputs import COMPUTE_BOUND, RandomWindows, compute_bound_model, smollm2
from benchmarks.measure import Row, in_turn, median_ratio
from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.routing.decoder import Decoder
from offramp.routing.executor import Executor, Policy

PAIRS = 5


def run() -> Iterator[Row]:
    yield row("native", compute_bound_model(), 4, 128, COMPUTE_BOUND, PAIRS)
    yield row(
        "smollm2", smollm2((10, 20), 64)[1], 4, 64, "SmolLM2-135M, exits after 10 and 20 of 30 layers", PAIRS
    )


def row(name: str, lm: Blockwise, windows: int, length: int, size: str, pairs: int) -> Row:
    tokens, targets = RandomWindows(windows, length, lm.config.vocab_size).batch(torch.arange(windows))
    policy, executor = half_leave(lm, tokens), Executor(lm)
    whole, (exits, losses) = (
        executor.run(tokens, targets, policy),
        token_by_token(lm, tokens, targets, policy),
    )
    other_exits = float((whole.exit != exits).float().mean())
    difference = float((whole.loss - losses).abs().mean())
    if other_exits > 0.01 or difference > 0.01:
        raise RuntimeError(
            f"the two ways score differently ({other_exits:.2%} of the exits, {difference:.3f} nats per "
            "token), "
            "so their times say nothing"
        )
    parallel, sequential = in_turn(
        lambda: executor.run(tokens, targets, policy),
        lambda: token_by_token(lm, tokens, targets, policy),
        pairs,
    )
    counts = whole.exit.flatten().bincount(minlength=lm.config.num_blocks).tolist()
    return Row(
        f"routed_perplexity_{name}",
        median_ratio(sequential, parallel),
        "x speed",
        None,
        f"one token of each of {windows} windows of {length} per pass, keys and values kept; "
        f"{', '.join(map(str, counts))} tokens leave, {other_exits:.2%} of them elsewhere, "
        f"mean difference of the losses {difference:.0e} nats, {size}",
    )


def half_leave(lm: Blockwise, tokens: Tensor) -> Policy:
    """An untrained linear classifier, at the median of its scores at the first exit, between two of them."""
    torch.manual_seed(0)
    classifier = ExitClassifier(lm.config.width, []).eval()
    with torch.no_grad():
        scores = torch.sigmoid(classifier(lm.run_block(0, lm.embed(tokens)).flatten(0, 1)))
    return ClassifierPolicy(classifier, float(scores.quantile(0.5)))


@torch.no_grad()
def token_by_token(lm: Blockwise, tokens: Tensor, targets: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    """Exits and losses in nats, each (B, T), of tokens (B, T) fed one column at a time."""
    decoder, rows, exits, losses = (
        Decoder(lm, len(tokens), space=tokens.shape[1]),
        torch.arange(len(tokens)),
        [],
        [],
    )
    for column, wanted in zip(tokens.T, targets.T):
        fed = decoder.feed(rows, column, policy)
        exits.append(fed.exit)
        losses.append(
            torch.nn.functional.cross_entropy(decoder.logits(fed.exit, fed.states), wanted, reduction="none")
        )
    return torch.stack(exits, 1), torch.stack(losses, 1)
