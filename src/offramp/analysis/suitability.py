"""Should this model exit early at all? What exits are worth, what oracles save, what asking costs, advice.

Everything is measured before any exit classifier is trained. Per exit: ``agreement`` (share of tokens whose
argmax is that of full depth) and NLL, read out raw (the last exit's norm and head on the earlier state: logit
lens) and tuned (the exit's own readout, where training gave it one). ``analysis.oracle`` says what is
attainable by one who knows what depth would change, beside what one would save who knows the next token;
break-even is the share of tokens that must leave at an exit before asking pays (``routing.break_even``);
``state_propagation`` is what it costs the others when some have left (``routing.propagation``).
``analysis.advice`` says in a sentence what follows.

Shapes: K exits, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from offramp.analysis.advice import advise
from offramp.analysis.oracle import bounds, can_leave
from offramp.artifacts.artifact import Artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.corpus.tokenizer import Encoder
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.models.pretrained import PretrainedLM, load_pretrained
from offramp.models.store import HF_CONFIG
from offramp.params import Routing as RoutingParams
from offramp.results.shape import exit_key
from offramp.results.suitability import BreakEven, ExitWorth, ReadoutQuality, Suitability, TimedText
from offramp.routing.break_even import TimedAsking, flops_break_even, seconds_break_even
from offramp.routing.cost import exit_costs
from offramp.routing.executor import Executor
from offramp.routing.propagation import propagation_cost
from offramp.routing.split import spread_windows, token_rows
from offramp.routing.timing import machine
from offramp.states.resampling import GroupSums, interval
from offramp.states.statistics import Readout, token_statistics
from offramp.states.store import States
from offramp.vocabulary import LOOKS_AT, RAW, TUNED

DRAWS = 1000
"""Bootstrap draws of windows behind every interval."""


@dataclass(frozen=True)
class Readings:
    """What every exit says of the same tokens, as if none had left: (K, N) each, in nats but for argmax."""

    loss: np.ndarray
    argmax: np.ndarray
    divergence: np.ndarray
    """KL(full || exit): 0 at full depth."""
    sequence: np.ndarray
    """(N,)"""


@dataclass
class Subject:
    """A model, how its exits read the same text out, and batches of text to time it on."""

    name: str
    model: Blockwise
    window: int
    readings: dict[str, Readings]
    """raw, tuned, or both."""
    batches: list[tuple[Tensor, Tensor]]
    kv: str = "propagate"
    precision: str = "fp32"
    """Of the layers."""
    hidden: list[int] = field(default_factory=lambda: [128])
    """Of the classifier of the state that is asked."""


def of_states(
    data: Artifact,
    lm: Artifact,
    model: Blockwise,
    states: Artifact,
    settings: RoutingParams,
    hidden: list[int],
    *,
    tokens: int = 16384,
    rounds: int = 5,
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
    text = windows.batch(spread_windows(len(windows), rounds * size))
    return Subject(
        name=str(lm.path),
        model=model,
        window=cached.window,
        readings=_read_cached(cached, model, rows, _trained(model, lm)),
        batches=_batches(*text, size, model.cos.device),
        kv=settings.kv,
        precision=cached.precision,
        hidden=hidden,
    )


def of_checkpoint(
    checkpoint: Checkpoint,
    exits_after: Sequence[int],
    text: str,
    device: torch.device,
    *,
    window: int = 128,
    tokens: int = 16384,
    rounds: int = 5,
    batch_size: int | None = None,
) -> Subject:
    """A checkpoint as it is, its exits logit lenses, on the first ``tokens`` of a text.

    UserError for a checkpoint that cannot be used or cut there, and for a text of fewer than two windows.
    """
    encode = Encoder(load_tokenizer(checkpoint, read_config(checkpoint)), "pretrained")
    model = load_pretrained(checkpoint, exits_after=exits_after, window=window).to(device)
    ids = torch.from_numpy(encode(text).astype(np.int64))
    count = min((len(ids) - 1) // window, max(2, tokens // window))
    if count < 2:
        raise UserError(
            f"--text has {len(ids)} tokens; give at least {2 * window + 1}, two windows of {window}, "
            "or a smaller --window"
        )
    inputs, targets = (
        ids[: count * window].view(count, window),
        ids[1 : count * window + 1].view(count, window),
    )
    size = min(batch_size or 4, count)
    turns = torch.arange(rounds * size) % count
    return Subject(
        name=checkpoint.name_or_path,
        model=model,
        window=window,
        readings={RAW: read_raw(model, inputs, targets, device)},
        batches=_batches(inputs[turns], targets[turns], size, device),
    )


def assess(subject: Subject) -> Suitability:
    """The whole answer: what is measured of the subject, and what to do."""
    model, batches = subject.model, subject.batches
    costs = np.array(exit_costs(model, subject.window, reads_out=False, decision_flops=0, kv=subject.kv))
    timed = seconds_break_even(Executor(model, subject.kv, subject.precision), batches, subject.hidden)
    qualities = {name: _quality(readings) for name, readings in subject.readings.items()}
    exits = [
        ExitWorth(
            exit=exit,
            layers=sum(model.config.block_layers[: exit + 1]),
            flop_saving=float(1 - cost),
            readouts={name: of_exits[exit] for name, of_exits in qualities.items()},
            **({"break_even": _break_even(subject, exit, timed[exit])} if exit < len(timed) else {}),
        )
        for exit, cost in enumerate(costs)
    ]
    oracle = {
        name: bounds(readings.loss, readings.argmax, readings.divergence, costs, readings.sequence, DRAWS)
        for name, readings in subject.readings.items()
    }
    state_propagation = propagation_cost(model, batches, DRAWS, subject.precision)
    sequence = next(iter(subject.readings.values())).sequence
    return Suitability(
        model=subject.name,
        precision=subject.precision,
        window=subject.window,
        tokens=len(sequence),
        sequences=len(np.unique(sequence)),
        exits={exit_key(row.exit): row for row in exits},
        oracle=oracle,
        state_propagation=state_propagation,
        timing=TimedText(
            rounds=len(batches), tokens=batches[0][0].numel(), machine=machine(batches[0][0].device)
        ),
        advice=advise(exits, oracle, state_propagation),
    )


def _break_even(subject: Subject, exit: int, timed: dict[str, TimedAsking]) -> dict[str, BreakEven]:
    classifier_flops = ExitClassifier(subject.model.config.width, subject.hidden).flops
    return {
        kind: BreakEven(
            flops=flops_break_even(
                subject.model, subject.window, exit, kind, classifier_flops=classifier_flops, kv=subject.kv
            ),
            seconds=timed[kind].break_even,
            asking_seconds=timed[kind].asking_cost,
        )
        for kind in LOOKS_AT
    }


@torch.no_grad()
def read_raw(
    model: Blockwise, tokens: Tensor, targets: Tensor, device: torch.device, batch_size: int = 16
) -> Readings:
    """Every exit read out through the last one's norm and head, over windows (S, T)."""
    readout = Readout(model.readout_matrix(model.config.num_blocks - 1))
    parts = []
    for rows in torch.arange(len(tokens)).split(batch_size):
        hidden = [states.flatten(0, 1) for states in model(tokens[rows].to(device))]
        parts.append(_lens(model, hidden, readout, targets[rows].flatten().to(device)))
    loss, argmax, divergence = (np.concatenate(of_parts, axis=1) for of_parts in zip(*parts))
    return Readings(loss, argmax, divergence, np.repeat(np.arange(len(tokens)), tokens.shape[1]))


def _read_cached(states: States, model: Blockwise, rows: np.ndarray, trained: bool) -> dict[str, Readings]:
    """The exits' readings of the tokens in the mask ``rows``: raw, tuned, or both where they differ."""
    exits = range(states.num_exits)
    stored = Readings(
        loss=np.stack([states.column(f"loss_{exit}")[rows] for exit in exits]),
        argmax=np.stack([states.column(f"argmax_{exit}")[rows] for exit in exits]),
        divergence=np.stack([states.divergence(exit)[rows] for exit in exits]),
        sequence=states.column("sequence")[rows],
    )
    if not trained:
        return {RAW: stored}
    if _shares_readout(model):
        return {TUNED: stored}
    return {RAW: _cached_lens(states, model, rows, stored), TUNED: stored}


@torch.no_grad()
def _cached_lens(states: States, model: Blockwise, rows: np.ndarray, stored: Readings) -> Readings:
    """The stored states of the tokens in ``rows``, read out through the last exit's norm and head.

    One shard of all exits is in memory at a time. Full depth is as it was stored.
    """
    matrix = model.readout_matrix(states.num_exits - 1)
    readout, parts, start, read = Readout(matrix), [], 0, 0
    targets = torch.from_numpy(states.column("target")[rows]).long().to(matrix.device)
    for shards in zip(*(states.hidden_shards(exit) for exit in range(states.num_exits))):
        keep = torch.from_numpy(rows[start : start + len(shards[0])])
        start, count = start + len(keep), int(keep.sum())
        if count:
            hidden = [shard[keep].float().to(matrix.device) for shard in shards]
            parts.append(_lens(model, hidden, readout, targets[read : read + count]))
            read += count
    loss, argmax, divergence = (np.concatenate(of_parts, axis=1) for of_parts in zip(*parts))
    loss[-1], argmax[-1] = stored.loss[-1], stored.argmax[-1]
    return Readings(loss, argmax, divergence, stored.sequence)


def _lens(
    model: Blockwise, hidden: list[Tensor], readout: Readout, targets: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss, argmax and divergence (K, N) of all exits' states (N, D), read out as the last exit's are."""
    last = len(hidden) - 1
    inputs = [model.readout_input(last, states) for states in hidden]
    read = token_statistics(inputs, [readout] * len(hidden), targets)
    read[last]["divergence"] = torch.zeros_like(read[last]["loss"])
    loss, argmax, divergence = (
        torch.stack([of_exit[name] for of_exit in read]).cpu().numpy()
        for name in ("loss", "argmax", "divergence")
    )
    return loss, argmax, divergence


def _trained(model: Blockwise, lm: Artifact) -> bool:
    """Whether anything was trained for the exits: all but a checkpoint as it is, read out as it is."""
    return not _shares_readout(model) or lm.file(HF_CONFIG).exists()


def _shares_readout(model: Blockwise) -> bool:
    return isinstance(model, PretrainedLM) and all(
        isinstance(translator, nn.Identity) for translator in model.translators
    )


def _batches(tokens: Tensor, targets: Tensor, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Batches of ``size`` windows each, or one of all where there are fewer."""
    parts: Iterable[tuple[Tensor, Tensor]] = zip(
        tokens.to(device).split(size), targets.to(device).split(size)
    )
    return [part for part in parts if len(part[0]) == min(size, len(tokens))]


def _quality(readings: Readings) -> list[ReadoutQuality]:
    """Per exit, with intervals from resamples of windows."""
    agrees = readings.argmax == readings.argmax[-1]
    values = {("agreement", exit): row for exit, row in enumerate(agrees)}
    values |= {("nll", exit): row for exit, row in enumerate(readings.loss)}
    draws = GroupSums(readings.sequence, values).resample(DRAWS, 0)

    def mean(name: str, exit: int) -> float:
        return float(values[name, exit].mean(dtype=np.float64))

    *early, full = readings.loss
    leaving = [can_leave(readings.divergence[exit], loss, full) for exit, loss in enumerate(early)]
    return [
        ReadoutQuality(
            agreement=mean("agreement", exit),
            agreement_interval=interval(draws["agreement", exit]),
            nll=mean("nll", exit),
            nll_interval=interval(draws["nll", exit]),
            **({"can_leave": leaving[exit]} if exit < len(leaving) else {}),
        )
        for exit in range(len(agrees))
    ]
