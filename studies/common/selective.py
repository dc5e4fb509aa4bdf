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

from offramp.machine.device import seed_all
from offramp.systems.ensemble import Optimisation
from offramp.systems.selective_output.model import SelectiveConfig, SelectiveLM
from offramp.systems.selective_output.training import (
    TOGETHER,
    Attempts,
    CarryOver,
    Method,
    Trained,
    mean_score,
    train,
)
from studies.common.workers import PUBLISHED_SEED
from studies.common.results import study_params
from studies.common.subwords import Subwords, shuffled
from studies.measures.reversal import Pair, read_pairs

SETTINGS: dict[str, Any] = study_params("selective_models")
SKIP_INTERVAL = 2
"""Of the fixed-skip successor."""
END = 0
"""<eos>"""
PAIRS = Path(__file__).resolve().parents[1] / "reversal/pairs.tsv"
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
    parts = {"parameters": model, "parameters.gate": model.gate, "parameters.project": model.project}
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


@dataclass
class Run:
    """A model, what it learns from and is chosen by, and what every look came to."""

    model: SelectiveLM
    method: Method
    train: Windows
    chosen_by: Windows
    fitted: Trained = field(default_factory=Trained)
    gates: list[float] = field(default_factory=list)
    """Mean gate of the first attempts, by look."""
    silent: list[float] = field(default_factory=list)
    """Share of places without an output, by look; of the published losses alone."""

    def fit(
        self,
        batches: Iterator[Windows],
        how: Optimisation,
        updates: int,
        look_every: int,
        patience: int | None,
    ) -> None:
        self.fitted = train(self.model, self.method, batches, how, updates, look_every, self._look, patience)
        self.model.eval()

    def _look(self, model: SelectiveLM) -> float:
        gates = gates_of(model, self.chosen_by[0])
        self.gates.append(float(gates.mean()))
        if isinstance(self.method, CarryOver):
            self.silent.append(1 - float(self.method.spoken(gates).float().mean()))
        return mean_score(model, self.method, *self.chosen_by)

    def progress(self) -> dict[str, float]:
        """From the first look to the best one."""
        best, nll = self.fitted.best_look - 1, [value for _, value in self.fitted.curve]
        values = {
            "best_look": best + 1,
            "first_rule_ppl": math.exp(nll[0]),
            "best_rule_ppl": math.exp(nll[best]),
            "rule_fall": nll[0] - nll[best],
            "first_gate": self.gates[0],
            "best_gate": self.gates[best],
            "gate_rise": self.gates[best] - self.gates[0],
        }
        return values | (
            {"first_silent": self.silent[0], "best_silent": self.silent[best]} if self.silent else {}
        )


@torch.no_grad()
def gates_of(model: SelectiveLM, tokens: Tensor) -> Tensor:
    """Gates (B, T - 1) of the first attempts at all places but the last, which the published loss leaves out."""
    return torch.cat([model.gate(model.states(part)[:, :-1]) for part in tokens.split(TOGETHER)])


# Corrected ------------------------------------------------------------------------------------------------------------


def train_corrected(
    data: Subwords,
    arm: str,
    seed: int,
    settings: dict[str, Any],
    facts: Sequence[str] = (),
    share: float = 0.0,
) -> Run:
    """One arm on training windows, of which a share holds ``facts``; the best look by calibration windows and the arm's own rule."""
    options = settings["corrected"]
    model = build(data.vocab_size, seed, settings)
    windows = data.windows("train", settings["window"])
    batches = shuffled(*windows, options["batch_size"], seed)
    if facts:
        batches = mixed(
            batches, fact_windows([data.encode(fact) for fact in facts], settings["window"], seed), share
        )
    run = Run(
        model,
        METHODS[arm],
        windows,
        data.windows("calibration", settings["window"], options["calibration_windows"]),
    )
    run.fit(
        batches,
        Optimisation(options["learning_rate"]),
        options["updates"] * (2 if arm == "ordinary_long" else 1),
        options["look_every"],
        None,
    )
    return run


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


def published_pairs(settings: dict[str, Any]) -> list[Pair]:
    """The facts that were trained on forwards."""
    return read_pairs(PAIRS)[: settings["published"]["facts"]]


def train_published(data: Subwords, arm: str, settings: dict[str, Any]) -> Run:
    """Windows of one stream drawn into training and validation, facts among the former, judged by the windows that stopped it."""
    options = settings["published"]
    facts = [pair.sentence("forward") for pair in published_pairs(settings)]
    training, validation = published_windows(data, facts, settings)
    run = Run(build(data.vocab_size, PUBLISHED_SEED, settings), METHODS[arm], training, validation)
    epoch = -(-len(training[0]) // options["batch_size"])
    run.fit(
        shuffled(*training, options["batch_size"], PUBLISHED_SEED),
        Optimisation(options["learning_rate"]),
        options["max_epochs"] * epoch,
        epoch,
        options["patience"],
    )
    return run


def published_windows(
    data: Subwords, facts: Sequence[str], settings: dict[str, Any]
) -> tuple[Windows, Windows]:
    """Training and validation: a tenth of the stream's windows at random; every fact, padded with <eos> (H5), is trained on."""
    options, window = settings["published"], settings["window"]
    stream = data.tokens["train"]
    count = min(options["windows"], (len(stream) - 1) // window)
    whole = stream[: count * window + 1]
    tokens, targets = whole[:-1].view(count, window), whole[1:].view(count, window)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(PUBLISHED_SEED))
    held, kept = order[: max(1, count // 10)], order[max(1, count // 10) :]
    rows = [torch.tensor(data.encode(fact)[: window + 1]) for fact in facts]
    padded = torch.stack([F.pad(row, (0, window + 1 - len(row)), value=END) for row in rows]).repeat(
        options["repeats"], 1
    )
    return (
        (torch.cat((tokens[kept], padded[:, :-1])), torch.cat((targets[kept], padded[:, 1:]))),
        (tokens[held], targets[held]),
    )
