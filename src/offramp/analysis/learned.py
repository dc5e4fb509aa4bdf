"""The trained exit classifiers as one more signal of cached states, beside those of the readout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from offramp.exits.classifier import classifier_inputs
from offramp.exits.ranking import loss_gap, most_confident
from offramp.exits.store import Exits
from offramp.states.store import States


@dataclass(frozen=True)
class LearnedSeparation:
    """What the classifier of an exit separates, in the measures of ``analysis.low_rank.rank_sweep``."""

    tokens: int
    gap: float
    """Mean loss of the less confident half minus that of the other, in nats."""
    oracle_share: float
    flop_share: float
    """FLOPs of a decision over those of the readout; above 1 for a classifier that sees its statistics."""
    label: str
    """What the classifier was trained to predict."""
    fitted_here: bool
    """Whether the classifier was fitted on some of these tokens."""


@torch.no_grad()
def learned_signal(states: States, exit: int, exits: Exits) -> np.ndarray:
    """Score (num_tokens,) of the classifier of ``exit``, not calibrated; an exit before full depth."""
    classifier, which = exits.classifier(exit), exits.config["inputs"]
    statistics = None if which == "state" else torch.from_numpy(states.statistics(exit))
    scores, start = [], 0
    for hidden in states.hidden_shards(exit):
        shard = slice(start, start + len(hidden))
        seen = None if statistics is None else statistics[shard]
        scores.append(classifier(classifier_inputs(which, hidden.float(), seen)).numpy())
        start += len(hidden)
    return np.concatenate(scores)


def fitted_on(exits: Exits, states: States) -> bool:
    """Whether the classifiers were fitted on some of the tokens of these states."""
    return states.artifact.digest in exits.artifact.inputs.values()


def learned_separation(states: States, exit: int, exits: Exits, max_tokens: int) -> LearnedSeparation:
    """How the classifier of ``exit`` separates losses, on those tokens that ``readout_inputs`` takes."""
    chosen = np.linspace(0, states.num_tokens - 1, min(max_tokens, states.num_tokens)).astype(int)
    loss, score = states.column(f"loss_{exit}")[chosen], learned_signal(states, exit, exits)[chosen]
    count = len(chosen) // 2
    gap, best = (loss_gap(most_confident(by, count), loss) for by in (score, -loss))
    vocab_size, width = states.readouts()["matrix_0"].shape
    readouts = exits.config["inputs"] != "state"
    return LearnedSeparation(
        tokens=len(chosen),
        gap=gap,
        oracle_share=gap / best if best else float("nan"),
        flop_share=exits.classifier(exit).flops / (2 * width * vocab_size) + readouts,
        label=exits.config["label"],
        fitted_here=fitted_on(exits, states),
    )
