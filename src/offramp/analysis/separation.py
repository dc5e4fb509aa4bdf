"""Are there easy and hard tokens at an exit, and which signal tells them apart? Asked of cached states.

The questions are those of the report loss-prediction; the answers come with what was missing there: a test of
bimodality, the value of Cohen's d without any structure, the oracle at the same easy fraction, chance and
oracle rows beside the signals, and intervals over sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from offramp.analysis.discrimination import SequenceBootstrap, parts, signal_separation, subsets
from offramp.analysis.distribution import loss_distribution
from offramp.analysis.learned import learned_signal
from offramp.analysis.predictability import held_out_split, predictability
from offramp.errors import UserError
from offramp.exits.signals import known_signals, raw_signal
from offramp.exits.store import Exits
from offramp.states.resampling import GroupSums, interval
from offramp.states.store import States
from offramp.vocabulary import LEARNED

READ = 30_000
"""About how many tokens predictability looks at: whole sequences, evenly spaced."""


def signals_of(states: States, exit: int, exits: Exits | None = None) -> dict[str, np.ndarray]:
    """Every signal that inference can have at ``exit``, (num_tokens,) each; higher = surer.

    With ``exits``, trained on states of the same model, also that of their classifier, which full depth has
    not.
    """
    columns = states.label_free(exit)
    signals = {name: raw_signal(name, columns) for name in known_signals(states.num_exits)}
    if exits is not None and exit < states.num_exits - 1:
        signals[LEARNED] = learned_signal(states, exit, exits)
    return signals


def separation(
    states: States,
    exit: int,
    signals: dict[str, np.ndarray],
    draws: int = 1000,
    seed: int = 0,
    easy_fraction: float = 0.5,
) -> dict[str, Any]:
    """The whole analysis of one exit, as plain numbers that JSON holds.

    ``loss``: ``loss_distribution`` and the interval of the mean. ``deep_helps``: share of tokens with a lower
    loss at full depth, None at the last exit. ``signals`` and ``controls`` {name: ``signal_separation``,
    ``intervals`` (95 %, over sequences), and for signals ``predictability`` from the hidden state}; the
    controls are ``random``, the ``oracle`` (the loss itself) and ``correct_prob`` = exp(-loss), which only
    looks like a signal. ``subsets``: high-confidence tokens. A bar on a terminal shows how far it is.
    UserError for an exit that does not exist or a signal of another length.
    """
    if not 0 <= exit < states.num_exits:
        raise UserError(f"exit = {exit}: {states.artifact.path} has exits 0 to {states.num_exits - 1}")
    for name, score in signals.items():
        if len(score) != states.num_tokens:
            raise UserError(
                f"signal {name!r} has {len(score)} values, the states have {states.num_tokens} tokens; use "
                "those of the same split"
            )
    loss, sequence = states.column(f"loss_{exit}"), states.column("sequence")
    deep = states.column(f"loss_{states.num_exits - 1}") if exit < states.num_exits - 1 else None
    controls = {
        "random": np.random.default_rng(seed).permutation(len(loss)),
        "oracle": -loss,
        "correct_prob": states.column(f"correct_prob_{exit}"),
    }
    bootstrap = SequenceBootstrap(sequence)
    described: dict[str, dict[str, dict[str, Any]]] = {"signals": {}, "controls": {}}
    # each score once, the intervals of all, and each signal once more from the state
    steps = 2 * len(signals) + len(controls) + 1
    with tqdm(total=steps, desc="separation", unit="step", disable=None, leave=False) as bar:
        for kind, scores in (("signals", signals), ("controls", controls)):
            for name, score in scores.items():
                of_tokens = parts(score, loss, deep, easy_fraction)
                described[kind][name] = signal_separation(score, loss, of_tokens, easy_fraction)
                bootstrap.add(f"{kind}/{name}", of_tokens)
                bar.update()
        ranges = bootstrap.intervals(draws, seed)
        bar.update()
        for kind, of_kind in described.items():
            for name, values in of_kind.items():
                values["intervals"] = ranges[f"{kind}/{name}"]
        for name, value in _predictability(states, exit, signals, seed):
            described["signals"][name]["predictability"] = value
            bar.update()
    means = {"loss": loss} | ({} if deep is None else {"deep_helps": deep < loss})
    resampled = GroupSums(sequence, means).resample(draws, seed)
    return {
        "exit": exit,
        "tokens": len(loss),
        "sequences": len(np.unique(sequence)),
        "draws": draws,
        "seed": seed,
        "easy_fraction": easy_fraction,
        "loss": loss_distribution(loss) | {"mean_interval": interval(resampled["loss"])},
        "deep_helps": None if deep is None else float((deep < loss).mean()),
        "deep_helps_interval": None if deep is None else interval(resampled["deep_helps"]),
        **described,
        "subsets": subsets(states.column(f"max_prob_{exit}"), loss, signals),
    }


def _predictability(
    states: States, exit: int, signals: dict[str, np.ndarray], seed: int
) -> Iterator[tuple[str, float | None]]:
    document, sequence = states.column("document"), states.column("sequence")
    names = np.unique(sequence)
    wanted = min(len(names), max(2, len(names) * READ // len(sequence)))
    kept = np.isin(sequence, names[np.linspace(0, len(names) - 1, wanted).astype(np.int64)])
    fit_mask = held_out_split(document[kept], sequence[kept], seed)
    hidden = states.hidden(exit, kept)
    for name, score in signals.items():
        yield name, predictability(hidden, score[kept], fit_mask, seed)
