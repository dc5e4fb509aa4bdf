"""The models of seed 000's studies: arms that differ in their loss alone, trained as published or as corrected.

    ordinary          the next token; the gate learns entropy, as published, from states that nothing leaks into
    ordinary_long     the same for twice the updates: as many FLOPs as the arms with one skipped step per token
    carried           the published loss: carried targets (H1) and labels shifted twice (H2)
    leak_only         carried targets, labels shifted once
    shift_only        labels shifted twice, nothing carried
    fixed_carried     the published loss of the fixed-skip successor, every second place: H1 and H2
    straight_through, score_function    skipped steps that reveal nothing, and a gate that learns from what they buy
    evenly            the same number of skipped steps at even distances; no gate
    always            a skipped step before every token: the fixed-skip successor without its leak
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.analysis.reversal import Pair, read_pairs
from offramp.models.selective import SelectiveConfig, SelectiveLM
from offramp.runtime import seed_all
from offramp.training.ensemble import Optimisation
from offramp.training.selective import Attempts, CarryOver, Method, Trained, mean_score, train
from pipeline.studies._arms import PUBLISHED_SEED
from pipeline.studies._results import study_params
from pipeline.studies._subwords import Subwords, shuffled

SETTINGS: dict[str, Any] = study_params("selective_models")
SKIP_INTERVAL = 2
"""Of the fixed-skip successor."""
END = 0
"""<eos>"""
PAIRS = Path(__file__).with_name("reversal_pairs.tsv")
METHODS: dict[str, Method] = {
    "ordinary_long": CarryOver(carries=False, double_shift=False),
    "straight_through": Attempts("straight_through", skips_per_token=SETTINGS["skips_per_token"]),
    "score_function": Attempts("score_function", skips_per_token=SETTINGS["skips_per_token"]),
    "evenly": Attempts("evenly", skips_per_token=SETTINGS["skips_per_token"]),
    "always": Attempts("interval", max_skip=SKIP_INTERVAL - 1),
    "ordinary": CarryOver(carries=False, double_shift=False),
    "carried": CarryOver(),
    "leak_only": CarryOver(double_shift=False),
    "shift_only": CarryOver(carries=False),
    "fixed_carried": CarryOver(skip_interval=SKIP_INTERVAL),
}
"""The longest trainings first, so that two processes end together."""

Windows = tuple[Tensor, Tensor]
"""Tokens and the token after each, both (N, T)."""


def build(vocab_size: int, seed: int, settings: dict[str, Any]) -> SelectiveLM:
    """A model of the studies' sizes as drawn; leaves the generators seeded for its training."""
    seed_all(seed)
    return SelectiveLM(SelectiveConfig(vocab_size, settings["window"], **settings["sizes"]))


def published_parameters() -> dict[str, int]:
    """Parameters of the seed's model at its own size, and of two of its parts; no weight is made."""
    with torch.device("meta"):
        model = SelectiveLM(SelectiveConfig(50_304, 128))
    count = {name: sum(weight.numel() for weight in part.parameters())
             for name, part in (("parameters", model), ("parameters.gate", model.gate), ("parameters.project", model.project))}
    return count


# Corrected ------------------------------------------------------------------------------------------------------------

def train_corrected(data: Subwords, arm: str, seed: int, settings: dict[str, Any], facts: Sequence[str] = (),
                    share: float = 0.0) -> tuple[SelectiveLM, Trained]:
    """One arm on training windows, of which a share holds ``facts``; the best look by calibration windows and the arm's own rule."""
    options, method = settings["corrected"], METHODS[arm]
    model = build(data.vocab_size, seed, settings)
    batches = shuffled(*data.windows("train", settings["window"]), options["batch_size"], seed)
    if facts:
        batches = mixed(batches, fact_windows([data.encode(fact) for fact in facts], settings["window"], seed), share)
    calibration = data.windows("calibration", settings["window"], options["calibration_windows"])
    updates = options["updates"] * (2 if arm == "ordinary_long" else 1)
    found = train(model, method, batches, Optimisation(options["learning_rate"]), updates, options["look_every"],
                  lambda one: mean_score(one, method, *calibration))
    return model.eval(), found


def fact_windows(facts: Sequence[list[int]], window: int, seed: int) -> Iterator[Tensor]:
    """Windows (T + 1,) without end of sentences, each ended by <eos>, in a fresh order every time through; a window starts with one."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        held = [END]
        for place in torch.randperm(len(facts), generator=generator).tolist() * (1 + window // len(facts)):
            held += [*facts[place], END]
            if len(held) > window:
                yield torch.tensor(held[: window + 1])
                held = [END]


def mixed(batches: Iterator[Windows], facts: Iterator[Tensor], share: float) -> Iterator[Windows]:
    """The same batches with a share of their windows, at least one, replaced by facts."""
    for tokens, targets in batches:
        tokens, targets = tokens.clone(), targets.clone()
        for row in range(max(1, round(share * len(tokens)))):
            window = next(facts)
            tokens[row], targets[row] = window[:-1], window[1:]
        yield tokens, targets


# Published ------------------------------------------------------------------------------------------------------------

@dataclass
class PublishedRun:
    """A model of the seed's protocol, with what each epoch came to."""

    model: SelectiveLM
    train: Windows
    validation: Windows
    fitted: Trained
    gates: list[float] = field(default_factory=list)
    """Mean over validation, by epoch."""
    silent: list[float] = field(default_factory=list)
    """Share of validation places without an output, by epoch."""

    @property
    def best(self) -> int:
        return self.fitted.best_look - 1

    @property
    def ppl(self) -> list[float]:
        return [math.exp(min(nll, 100.0)) for _, nll in self.fitted.curve]


def published_pairs(settings: dict[str, Any]) -> list[Pair]:
    """The facts that were trained on forwards."""
    return read_pairs(PAIRS)[: settings["published"]["facts"]]


def train_published(data: Subwords, arm: str, settings: dict[str, Any]) -> PublishedRun:
    """Windows of one stream drawn into training and validation, facts among the former, judged by the windows that stopped it."""
    options, method = settings["published"], METHODS[arm]
    facts = [pair.sentence("forward") for pair in published_pairs(settings)]
    training, validation = published_windows(data, facts, settings)
    model = build(data.vocab_size, PUBLISHED_SEED, settings)
    run = PublishedRun(model, training, validation, Trained())

    def look(one: SelectiveLM) -> float:
        gates, spoken = places(one, method, *validation)
        run.gates.append(float(gates.mean()))
        run.silent.append(1 - float(spoken.float().mean()))
        return mean_score(one, method, *validation)

    epoch = -(-len(training[0]) // options["batch_size"])
    run.fitted = train(model, method, shuffled(*training, options["batch_size"], PUBLISHED_SEED),
                       Optimisation(options["learning_rate"]), options["max_epochs"] * epoch, epoch, look, options["patience"])
    model.eval()
    return run


def published_windows(data: Subwords, facts: Sequence[str], settings: dict[str, Any]) -> tuple[Windows, Windows]:
    """Training and validation: a tenth of the stream's windows at random; every fact, padded with <eos> (H5), is trained on."""
    options, window = settings["published"], settings["window"]
    stream = data.tokens["train"]
    count = min(options["windows"], (len(stream) - 1) // window)
    whole = stream[: count * window + 1]
    tokens, targets = whole[:-1].view(count, window), whole[1:].view(count, window)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(PUBLISHED_SEED))
    held, kept = order[: max(1, count // 10)], order[max(1, count // 10) :]
    rows = [torch.tensor(data.encode(fact)[: window + 1]) for fact in facts]
    padded = torch.stack([F.pad(row, (0, window + 1 - len(row)), value=END) for row in rows]).repeat(options["repeats"], 1)
    return ((torch.cat((tokens[kept], padded[:, :-1])), torch.cat((targets[kept], padded[:, 1:]))), (tokens[held], targets[held]))


@torch.no_grad()
def places(model: SelectiveLM, method: Method, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gates (B, T - 1) of a model trained by carrying over, and which places speak."""
    gates = torch.cat([model.gate(model.states(part)[:, :-1]) for part in tokens.split(32)])
    return gates, method.spoken(gates)
