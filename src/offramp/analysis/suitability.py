"""Should this model exit early at all? What its exits are worth, what an oracle would save, what asking costs, and advice.

Everything is measured before any exit classifier is trained. Per exit: ``agreement`` (share of tokens whose argmax is that of full
depth) and NLL, read out raw (the last exit's norm and head on the earlier state: logit lens) and tuned (the exit's own readout,
where training gave it one). Oracles that know every loss and prediction bound what any signal can save (``analysis.oracle``);
break-even is the share of tokens that must leave at an exit before asking pays (``routing.break_even``); ``state_propagation`` is what it
costs the others when some have left (``routing.propagation``). ``analysis.advice`` says in a sentence what follows.

Shapes: K exits, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.analysis.advice import advise, propagation
from offramp.analysis.oracle import bounds
from offramp.artifacts.artifact import Artifact
from offramp.checkpoints.checkpoint import Checkpoint, load_tokenizer, read_config
from offramp.corpus.tokenizer import Encoder
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.models.pretrained import PretrainedLM, load_pretrained
from offramp.models.store import THEIRS
from offramp.routing.break_even import KINDS, flops_break_even, seconds_break_even
from offramp.routing.cost import exit_costs
from offramp.routing.evaluate import machine, spread_windows, token_rows
from offramp.routing.executor import Executor
from offramp.routing.propagation import propagation_cost
from offramp.states.resampling import DocumentSums, interval
from offramp.states.statistics import Readout, predictions
from offramp.states.store import States

DRAWS = 1000
"""Bootstrap draws of windows behind every interval."""


@dataclass(frozen=True)
class Readings:
    """What every exit says of the same tokens, as if none had left: loss in nats and argmax, (K, N) each."""

    loss: np.ndarray
    argmax: np.ndarray
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
    params: Any,
    tokens: int = 16384,
    rounds: int = 5,
    batch_size: int | None = None,
) -> Subject:
    """The model of ``lm`` on cached states of it, timed on test windows; of ``params`` it reads routing.kv, routing.batch_size and
    exits.hidden."""
    cached, windows, size = (
        States(states),
        TokenWindows(data, "test"),
        batch_size or params.routing.batch_size,
    )
    rows = np.zeros(cached.num_tokens, bool)
    rows[
        token_rows(
            spread_windows(cached.num_tokens // cached.window, max(1, tokens // cached.window)), cached.window
        )
    ] = True
    batches = _batches(*windows.batch(spread_windows(len(windows), rounds * size)), size, model.cos.device)
    return Subject(
        str(lm.path),
        model,
        cached.window,
        _read_cached(cached, model, rows, _trained(model, lm)),
        batches,
        params.routing.kv,
        cached.precision,
        params.exits.hidden,
    )


def of_checkpoint(
    checkpoint: Checkpoint,
    exits_after: Sequence[int],
    text: str,
    device: torch.device,
    window: int = 128,
    tokens: int = 16384,
    rounds: int = 5,
    batch_size: int | None = None,
) -> Subject:
    """A checkpoint as it is, its exits logit lenses, on the first ``tokens`` of a text.

    UserError for a checkpoint that cannot be used or cut there, and for a text of fewer than two windows.
    """
    encode = Encoder(load_tokenizer(checkpoint, read_config(checkpoint)), "pretrained")
    model = load_pretrained(*checkpoint, exits_after=exits_after, window=window).to(device)
    ids = torch.from_numpy(encode(text).astype(np.int64))
    count = min((len(ids) - 1) // window, max(2, tokens // window))
    if count < 2:
        raise UserError(
            f"--text has {len(ids)} tokens; give at least {2 * window + 1}, two windows of {window}, or a smaller --window"
        )
    inputs, targets = (
        ids[: count * window].view(count, window),
        ids[1 : count * window + 1].view(count, window),
    )
    size = min(batch_size or 4, count)
    turns = torch.arange(rounds * size) % count
    return Subject(
        checkpoint.name_or_path,
        model,
        window,
        {"raw": read_raw(model, inputs, targets, device)},
        _batches(inputs[turns], targets[turns], size, device),
    )


def assess(subject: Subject) -> dict[str, Any]:
    """The whole answer, as plain numbers that JSON holds."""
    model, last = subject.model, subject.model.config.num_blocks - 1
    costs = np.array(exit_costs(model, subject.window, reads_out=False, decision_flops=0, kv=subject.kv))
    classifier_flops = ExitClassifier(model.config.width, subject.hidden).flops
    seconds = seconds_break_even(
        Executor(model, subject.kv, subject.precision), subject.batches, subject.hidden
    )
    quality = {name: _quality(readings) for name, readings in subject.readings.items()}
    exits = {}
    for exit in range(last + 1):
        row = {
            "exit": exit,
            "layers": sum(model.config.block_layers[: exit + 1]),
            "flop_saving": float(1 - costs[exit]),
            "readouts": {name: rows[exit] for name, rows in quality.items()},
        }
        if exit < last:
            row["break_even"] = {
                kind: {
                    "flops": flops_break_even(
                        model, subject.window, exit, kind, classifier_flops, subject.kv
                    ),
                    "seconds": seconds[exit][kind]["break_even"],
                    "asking_seconds": seconds[exit][kind]["asking_cost"],
                }
                for kind in KINDS
            }
        exits[f"exit_{exit}"] = row
    oracles = {
        name: {bound: asdict(value) for bound, value in bounds(readings.loss, readings.argmax, costs).items()}
        for name, readings in subject.readings.items()
    }
    first = next(iter(subject.readings.values()))
    found = {
        "model": subject.name,
        "precision": subject.precision,
        "window": subject.window,
        "tokens": len(first.sequence),
        "sequences": len(np.unique(first.sequence)),
        "exits": exits,
        "oracle": oracles,
        "state_propagation": propagation_cost(model, subject.batches, DRAWS, subject.precision),
        "timing": {
            "rounds": len(subject.batches),
            "tokens": subject.batches[0][0].numel(),
            "machine": machine(subject.batches[0][0].device),
        },
    }
    return found | {"advice": asdict(advise(found)) | {"propagation": propagation(found)}}


@torch.no_grad()
def read_raw(
    model: Blockwise, tokens: Tensor, targets: Tensor, device: torch.device, batch_size: int = 16
) -> Readings:
    """Every exit read out through the last one's norm and head, over windows (S, T)."""
    last = model.config.num_blocks - 1
    readout, found = Readout(model.readout_matrix(last)), [[] for _ in range(last + 1)]
    for rows in torch.arange(len(tokens)).split(batch_size):
        wanted = targets[rows].flatten().to(device)
        for exit, states in enumerate(model(tokens[rows].to(device))):
            found[exit].append(
                predictions(model.readout_input(last, states.flatten(0, 1)), readout, wanted)[:2]
            )
    loss, argmax = (
        np.stack([torch.cat([part[place] for part in parts]).cpu().numpy() for parts in found])
        for place in (0, 1)
    )
    return Readings(loss, argmax, np.repeat(np.arange(len(tokens)), tokens.shape[1]))


def _read_cached(states: States, model: Blockwise, rows: np.ndarray, trained: bool) -> dict[str, Readings]:
    """The exits' readings of the tokens in the mask ``rows``: raw where they differ from, or are, the exits' own."""
    own = Readings(
        *(
            np.stack([states.column(f"{name}_{exit}")[rows] for exit in range(states.num_exits)])
            for name in ("loss", "argmax")
        ),
        states.column("sequence")[rows],
    )
    if not trained:
        return {"raw": own}
    if _shares_readout(model):
        return {"tuned": own}
    return {"raw": _cached_lens(states, model, rows, own), "tuned": own}


@torch.no_grad()
def _cached_lens(states: States, model: Blockwise, rows: np.ndarray, own: Readings) -> Readings:
    last, loss, argmax = states.num_exits - 1, own.loss.copy(), own.argmax.copy()
    matrix = model.readout_matrix(last)
    readout, targets = (
        Readout(matrix),
        torch.from_numpy(states.column("target")[rows]).long().to(matrix.device),
    )
    for exit in range(last):
        inputs = model.readout_input(last, states.hidden(exit, rows).to(matrix.device))
        loss[exit], argmax[exit] = (part.cpu().numpy() for part in predictions(inputs, readout, targets)[:2])
    return Readings(loss, argmax, own.sequence)


def _trained(model: Blockwise, lm: Artifact) -> bool:
    """Whether anything was trained for the exits: all but a checkpoint as it is, read out as it is."""
    return not _shares_readout(model) or lm.file(THEIRS).exists()


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


def _quality(readings: Readings) -> list[dict[str, Any]]:
    agrees = readings.argmax == readings.argmax[-1]
    values = {("agreement", exit): row for exit, row in enumerate(agrees)} | {
        ("nll", exit): row for exit, row in enumerate(readings.loss)
    }
    draws = DocumentSums(readings.sequence, values).resample(DRAWS, 0)
    return [
        {
            entry: part
            for name in ("agreement", "nll")
            for entry, part in (
                (name, float(values[name, exit].mean(dtype=np.float64))),
                (f"{name}_interval", interval(draws[name, exit])),
            )
        }
        for exit in range(len(agrees))
    ]
