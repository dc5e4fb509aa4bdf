"""Should this model exit early at all? What exits are worth, what oracles save, what asking costs, advice.

Everything is measured before any exit classifier is trained. Per exit: ``agreement`` (share of tokens whose
argmax is that of full depth) and NLL, read out raw (the last exit's norm and head on the earlier state: logit
lens), by least squares (of a checkpoint: ``analysis.checkpoint``) and tuned (the exit's own readout, where
training gave it one). ``analysis.oracle`` says what is attainable, with each exit alone and with all of them,
by one who knows what depth would change, beside what one would save who knows the next token; break-even is
the share of tokens that must leave at an exit before asking one signal pays (``routing.break_even``);
``state_propagation`` is what it costs the others when some have left (``routing.propagation``).
``analysis.advice`` says in a sentence what follows.

Shapes: K exits, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.analysis.advice import advise
from offramp.analysis.oracle import attainable, bounds, can_leave
from offramp.analysis.readings import Readings, read_cached, read_cached_raw
from offramp.artifacts.artifact import Artifact
from offramp.corpus.excerpts import LEAST_DOCUMENTS
from offramp.corpus.windows import TokenWindows
from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.models.pretrained import PretrainedLM
from offramp.models.store import HF_CONFIG
from offramp.params import Routing as RoutingParams
from offramp.results.shape import exit_key
from offramp.results.suitability import (
    BreakEven,
    CheckpointSuitability,
    ExitWorth,
    MeasuredText,
    ReadoutQuality,
    Suitability,
    TimedText,
)
from offramp.routing.break_even import TimedAsking, flops_break_even, seconds_break_even
from offramp.routing.cost import exit_costs
from offramp.routing.executor import Executor
from offramp.routing.propagation import propagation_cost
from offramp.routing.split import spread_windows, token_rows
from offramp.routing.timing import machine
from offramp.states.resampling import GroupSums, interval
from offramp.states.store import States
from offramp.vocabulary import RAW, STATE, TUNED

ROUNDS = 9
"""Batches timed, if not told otherwise: of so many, one on either side may be out of line
(``routing.break_even.median``)."""
DRAWS = 1000
"""Bootstrap draws of groups behind every interval."""


@dataclass
class Subject:
    """A model, how its exits read the same text out, and batches of text to time it on."""

    name: str
    model: Blockwise
    window: int
    readings: dict[str, Readings]
    """By how the exits are read out: see ``results.suitability.READOUTS``."""
    batches: list[tuple[Tensor, Tensor]]
    """Timed, in turn."""
    propagated: list[tuple[Tensor, Tensor]]
    """Those on which state propagation is measured."""
    grouped_by: str
    """What the groups of the readings are: documents, stretches of them, or windows."""
    text: MeasuredText | None = None
    """Of a checkpoint: where its text comes from."""
    kv: str = "propagate"
    precision: str = "fp32"
    """Of the layers."""
    hidden: list[int] = field(default_factory=lambda: [128])
    """Of the classifier that is asked where the signal is of the state."""
    looks_at: str = STATE
    """What the signal looks at whose asking is weighed."""


def of_states(
    data: Artifact,
    lm: Artifact,
    model: Blockwise,
    states: Artifact,
    settings: RoutingParams,
    hidden: list[int],
    *,
    tokens: int = 16384,
    rounds: int = ROUNDS,
    batch_size: int | None = None,
) -> Subject:
    """The model of ``lm`` on its cached states, and on test windows to time it.

    It is read on about ``tokens`` tokens and timed on ``rounds`` batches. Of ``settings`` it reads ``kv``
    and, where none is given, ``batch_size``; ``hidden`` are the widths of the classifier that is asked.
    """
    cached, windows, size = States(states), TokenWindows(data, "test"), batch_size or settings.batch_size
    chosen = spread_windows(cached.num_tokens // cached.window, max(1, tokens // cached.window))
    rows = np.zeros(cached.num_tokens, bool)
    rows[token_rows(chosen, cached.window)] = True
    text = in_batches(*windows.batch(spread_windows(len(windows), rounds * size)), size, model.cos.device)
    documents = cached.column("document")[rows]
    by_document = len(np.unique(documents)) >= LEAST_DOCUMENTS
    return Subject(
        name=str(lm.path),
        model=model,
        window=cached.window,
        readings=_read(
            cached,
            model,
            rows,
            documents if by_document else cached.column("sequence")[rows],
            _trained(model, lm),
        ),
        batches=text,
        propagated=text,
        grouped_by="documents" if by_document else "windows",
        kv=settings.kv,
        precision=cached.precision,
        hidden=hidden,
    )


def assess(subject: Subject) -> Suitability:
    """The whole answer: what is measured of the subject, and what to do."""
    model, batches = subject.model, subject.batches
    costs = np.array(exit_costs(model, subject.window, reads_out=False, decision_flops=0, kv=subject.kv))
    executor = Executor(model, subject.kv, subject.precision)
    timed = seconds_break_even(executor, batches, subject.hidden, subject.looks_at)
    qualities = {name: _quality(readings, costs) for name, readings in subject.readings.items()}
    exits = [
        ExitWorth(
            exit=exit,
            layers=sum(model.config.block_layers[: exit + 1]),
            flop_saving=float(1 - cost),
            readouts={name: of_exits[exit] for name, of_exits in qualities.items()},
            **(
                {"break_even": _break_even(subject, exit, timed.exits[exit])}
                if exit < len(timed.exits)
                else {}
            ),
        )
        for exit, cost in enumerate(costs)
    ]
    oracle = {
        name: bounds(readings.loss, readings.argmax, readings.divergence, costs, readings.group, DRAWS)
        for name, readings in subject.readings.items()
    }
    state_propagation = propagation_cost(model, subject.propagated, DRAWS, subject.precision)
    tokens = len(next(iter(subject.readings.values())).group)
    values: dict[str, Any] = {
        "model": subject.name,
        "precision": subject.precision,
        "window": subject.window,
        "tokens": tokens,
        "sequences": tokens // subject.window,
        "exits": {exit_key(row.exit): row for row in exits},
        "oracle": oracle,
        "state_propagation": state_propagation,
        "timing": TimedText(
            rounds=len(batches),
            tokens=batches[0][0].numel(),
            machine=machine(batches[0][0].device),
            seconds=[min(timed.plain), max(timed.plain)],
        ),
        "advice": advise(exits, oracle, state_propagation, subject.looks_at),
        "looks_at": subject.looks_at,
        "grouped_by": subject.grouped_by,
    }
    return (
        Suitability(**values) if subject.text is None else CheckpointSuitability(text=subject.text, **values)
    )


def _break_even(subject: Subject, exit: int, timed: TimedAsking) -> BreakEven:
    return BreakEven(
        flops=flops_break_even(
            subject.model,
            subject.window,
            exit,
            subject.looks_at,
            classifier_flops=ExitClassifier(subject.model.config.width, subject.hidden).flops,
            kv=subject.kv,
        ),
        clock=timed.clock,
        seconds=timed.share.value if timed.share else None,
        seconds_interval=timed.share.interval if timed.share else None,
        asking_seconds=timed.asking_cost.value,
        asking_interval=timed.asking_cost.interval,
    )


def _read(
    states: States, model: Blockwise, rows: np.ndarray, group: np.ndarray, trained: bool
) -> dict[str, Readings]:
    """The exits' readings of the tokens in the mask ``rows``: raw, tuned, or both where they differ."""
    stored = read_cached(states, rows, group)
    if not trained:
        return {RAW: stored}
    if _shares_readout(model):
        return {TUNED: stored}
    return {RAW: read_cached_raw(states, model, rows, stored), TUNED: stored}


def _trained(model: Blockwise, lm: Artifact) -> bool:
    """Whether anything was trained for the exits: all but a checkpoint as it is, read out as it is."""
    return not _shares_readout(model) or lm.has(HF_CONFIG)


def _shares_readout(model: Blockwise) -> bool:
    return isinstance(model, PretrainedLM) and all(
        isinstance(translator, nn.Identity) for translator in model.translators
    )


def in_batches(
    tokens: Tensor, targets: Tensor, size: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Batches of ``size`` windows each, or one of all where there are fewer."""
    parts: Iterable[tuple[Tensor, Tensor]] = zip(
        tokens.to(device).split(size), targets.to(device).split(size)
    )
    return [part for part in parts if len(part[0]) == min(size, len(tokens))]


def _quality(readings: Readings, costs: np.ndarray) -> list[ReadoutQuality]:
    """Per exit, with intervals from resamples of groups."""
    agrees = readings.argmax == readings.argmax[-1]
    values = {("agreement", exit): row for exit, row in enumerate(agrees)}
    values |= {("nll", exit): row for exit, row in enumerate(readings.loss)}
    draws = GroupSums(readings.group, values).resample(DRAWS, 0)

    def mean(name: str, exit: int) -> float:
        return float(values[name, exit].mean(dtype=np.float64))

    def alone(exit: int) -> dict[str, Any]:
        """What leaving is worth with that exit alone in use; nothing of full depth."""
        both = [exit, len(agrees) - 1]
        if exit == both[1]:
            return {}
        loss, divergence = readings.loss[both], readings.divergence[both]
        return {
            "can_leave": can_leave(divergence[0], *loss),
            "attainable": attainable(divergence, loss, costs[both], readings.group, DRAWS),
        }

    return [
        ReadoutQuality(
            agreement=mean("agreement", exit),
            agreement_interval=interval(draws["agreement", exit]),
            nll=mean("nll", exit),
            nll_interval=interval(draws["nll", exit]),
            **alone(exit),
        )
        for exit in range(len(agrees))
    ]
