"""Training of the small selective models that the studies of the report selective-output share.

A selective model has a gate that may decline to speak after a token and take a skipped step instead. The
report carried the targets of silent places over while the input went on, so that most targets had been read
already ("carried targets"), and shifted labels that had been shifted before ("labels shifted twice"). Arms
differ in their loss alone:

    ordinary          the next token; the gate learns entropy, as published, from states that nothing leaks
                      into
    ordinary_long     the same for twice the updates: as many FLOPs as arms with one skipped step per token
    carried           the published loss: carried targets, and labels shifted twice
    leak_only         carried targets, labels shifted once
    shift_only        labels shifted twice, nothing carried
    threshold_alone   the published loss with nothing but the threshold that makes a place speak
    fixed_carried     the published loss of the fixed-skip successor, in which every second place speaks
    straight_through, score_function
                      skipped steps that reveal nothing, and a gate that learns from what they buy
    evenly            the same number of skipped steps at even distances; no gate
    always            a skipped step before every token: the fixed-skip successor without its leak

Shapes: N windows, B of a batch, T tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from studies.common.selective_models.facts import Fact, read_facts
from studies.common.settings import Settings
from studies.common.subwords import Subwords, shuffled

SKIP_INTERVAL = 2
"""Of the fixed-skip successor."""
END = 0
"""The token <eos>, which ends every document and every fact."""
HELD_OUT_EVERY = 10
"""Of the published windows, one in so many is for validation."""
ARMS = (
    "carried",
    "leak_only",
    "shift_only",
    "ordinary_long",
    "straight_through",
    "score_function",
    "evenly",
    "always",
    "ordinary",
    "threshold_alone",
    "fixed_carried",
)
"""The longest trainings first, so that two processes end together."""
FLAWED = ("carried", "leak_only", "shift_only")
"""Arms with a loss of the report that is learnt slowly: a target among the inputs has to be looked for."""

Windows = tuple[Tensor, Tensor]
"""Tokens and the token after each, both (N, T)."""


class Sizes(Settings):
    """Of a model, as ``SelectiveConfig`` has them."""

    width: int
    layers: int
    heads: int
    ffn_width: int
    gate_width: int


class PublishedTraining(Settings):
    """The report's recipe, in epochs."""

    windows: int
    """Of the training text, before a tenth of them is held out."""
    facts: int
    """The first of facts.tsv, all trained on forwards."""
    repeats: int
    """Of every fact."""
    batch_size: int
    learning_rate: float
    max_epochs: int
    patience: int
    """Epochs without a better one after which training stops."""


class Updates(Settings):
    """How long a model is trained, and how fast."""

    updates: int
    look_every: int
    learning_rate: float


class CorrectedTraining(Settings):
    """Equal updates of all arms but ``ordinary_long``, which has twice as many, and ``FLAWED``."""

    updates: int
    look_every: int
    """Updates between two looks at the calibration windows."""
    batch_size: int
    learning_rate: float
    calibration_windows: int
    test_windows: int
    flawed: Updates
    """Of the arms ``FLAWED``."""


class SelectiveModels(Settings):
    """The section selective_models of common/settings.yaml."""

    documents: int | None
    """Of the corpus, its first ones; None for all."""
    vocab_size: int
    held_out: float
    """Share of the documents that is for calibration, and as many again for test."""
    window: int
    sizes: Sizes
    skips_per_token: float
    """Skipped steps per output, as many as the published generation took."""
    published: PublishedTraining
    corrected: CorrectedTraining

    @property
    def spoken_share(self) -> float:
        """The share of the published steps that spoke."""
        return 1 / (1 + self.skips_per_token)


def method_of(arm: str, models: SelectiveModels) -> Method:
    """The loss of an arm of ``ARMS``."""
    if arm in ("straight_through", "score_function", "evenly"):
        return Attempts(arm, skips_per_token=models.skips_per_token)
    methods: dict[str, Method] = {
        "ordinary_long": CarryOver(carries=False, double_shift=False),
        "always": Attempts("interval", max_skip=SKIP_INTERVAL - 1),
        "ordinary": CarryOver(carries=False, double_shift=False),
        "carried": CarryOver(),
        "leak_only": CarryOver(double_shift=False),
        "shift_only": CarryOver(carries=False),
        # of a window whose gates are all closed the last scored place speaks: no loss is of nothing
        "threshold_alone": CarryOver(max_skip=models.window - 2),
        "fixed_carried": CarryOver(skip_interval=SKIP_INTERVAL),
    }
    return methods[arm]


def build(vocab_size: int, seed: int, models: SelectiveModels) -> SelectiveLM:
    """A model of the studies' sizes as drawn; leaves the generators seeded for its training."""
    seed_all(seed)
    return SelectiveLM(SelectiveConfig(vocab_size, models.window, **models.sizes.model_dump()))


def published_parameters() -> dict[str, int]:
    """Parameters of the report's model at its own size, and of two of its parts; no weight is made."""
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
    fitted: Trained = field(init=False)
    gates: list[float] = field(default_factory=list)
    """Mean gate of the first attempts, by look."""
    silent: list[float] = field(default_factory=list)
    """Share of places without an output, by look; of the published losses alone."""
    train_nll: list[float] = field(default_factory=list)
    """What the rule of training scores on training windows, as many as those it is chosen by; by look."""

    def fit(
        self,
        batches: Iterator[Windows],
        *,
        how: Optimisation,
        updates: int,
        look_every: int,
        patience: int | None,
    ) -> None:
        self.fitted = train(
            self.model,
            self.method,
            batches,
            self._look,
            how=how,
            updates=updates,
            look_every=look_every,
            patience=patience,
        )
        self.model.eval()

    def _look(self, model: SelectiveLM) -> float:
        gates = gates_of(model, self.chosen_by[0])
        self.gates.append(float(gates.mean()))
        if isinstance(self.method, CarryOver):
            self.silent.append(1 - float(self.method.spoken(gates).float().mean()))
        windows = len(self.train[0])
        seen = torch.linspace(0, windows - 1, min(windows, len(self.chosen_by[0]))).long()
        self.train_nll.append(mean_score(model, self.method, *(part[seen] for part in self.train)))
        return mean_score(model, self.method, *self.chosen_by)

    def progress(self) -> dict[str, float]:
        """The first, the best and the last look, and from the first to the best or the last one."""
        best, nll = self.fitted.best_look - 1, [value for _, value in self.fitted.curve]
        curves = {
            "rule_ppl": [math.exp(value) for value in nll],
            "train_ppl": [math.exp(value) for value in self.train_nll],
            "gate": self.gates,
        }
        if self.silent:
            curves["silent"] = self.silent
        values = {
            f"{name}_{of}": curve[place]
            for of, curve in curves.items()
            for name, place in (("first", 0), ("best", best), ("last", -1))
        }
        values |= {
            "best_look": best + 1,
            "looks": len(nll),
            "rule_fall": nll[0] - nll[best],
            "gate_rise": self.gates[best] - self.gates[0],
        }
        if self.silent:
            values["silent_fall"] = self.silent[0] - self.silent[-1]
        return values


@torch.no_grad()
def gates_of(model: SelectiveLM, tokens: Tensor) -> Tensor:
    """Gates (N, T - 1) of the first attempts at all places but the last, which the published loss leaves
    out."""
    return torch.cat([model.gate(model.states(part)[:, :-1]) for part in tokens.split(TOGETHER)])


# Corrected --------------------------------------------------------------------------------------------------


def train_corrected(
    data: Subwords,
    arm: str,
    seed: int,
    models: SelectiveModels,
    facts: Sequence[str] = (),
    share: float = 0.0,
) -> Run:
    """Train one arm on training windows, a share of which holds the sentences ``facts``.

    The model keeps the weights of its best look, by the arm's own rule on calibration windows.
    """
    how = models.corrected
    model = build(data.vocab_size, seed, models)
    windows = data.windows("train", models.window)
    batches = shuffled(*windows, how.batch_size, seed)
    if facts:
        sentences = [data.encode(fact) for fact in facts]
        batches = mixed(batches, fact_windows(sentences, models.window, seed), share)
    run = Run(
        model,
        method_of(arm, models),
        windows,
        data.windows("calibration", models.window, how.calibration_windows),
    )
    length = how.flawed if arm in FLAWED else how
    run.fit(
        batches,
        how=Optimisation(length.learning_rate),
        updates=length.updates * (2 if arm == "ordinary_long" else 1),
        look_every=length.look_every,
        patience=None,
    )
    return run


def fact_windows(facts: Sequence[list[int]], window: int, seed: int) -> Iterator[Tensor]:
    """Windows (T + 1,) without end of sentences, each ended by <eos>, in a fresh order every time through.

    A window starts with <eos>.
    """
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


# Published --------------------------------------------------------------------------------------------------


def published_facts(models: SelectiveModels) -> list[Fact]:
    """The facts that were trained on forwards."""
    return read_facts()[: models.published.facts]


def train_published(data: Subwords, arm: str, seed: int, models: SelectiveModels) -> Run:
    """Train one arm by the report's recipe, judged by the windows that stop it.

    Windows of one stream are drawn into training and validation; facts are among the former.
    """
    how = models.published
    facts = [fact.sentence("forward") for fact in published_facts(models)]
    training, validation = published_windows(data, facts, models, seed)
    method = method_of(arm, models)
    run = Run(build(data.vocab_size, seed, models), method, training, validation)
    epoch = -(-len(training[0]) // how.batch_size)
    run.fit(
        shuffled(*training, how.batch_size, seed),
        how=Optimisation(how.learning_rate),
        updates=how.max_epochs * epoch,
        look_every=epoch,
        patience=how.patience,
    )
    return run


def published_windows(
    data: Subwords, facts: Sequence[str], models: SelectiveModels, seed: int
) -> tuple[Windows, Windows]:
    """Training and validation windows: a tenth of the stream's, drawn at random, is held out.

    Every fact is trained on, padded with <eos>, which the published loss counts.
    """
    how, window = models.published, models.window
    stream = data.tokens["train"]
    count = min(how.windows, (len(stream) - 1) // window)
    whole = stream[: count * window + 1]
    tokens, targets = whole[:-1].view(count, window), whole[1:].view(count, window)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    validation = max(1, count // HELD_OUT_EVERY)
    held_out, kept = order[:validation], order[validation:]
    rows = [torch.tensor(data.encode(fact)[: window + 1]) for fact in facts]
    padded = torch.stack([F.pad(row, (0, window + 1 - len(row)), value=END) for row in rows])
    padded = padded.repeat(how.repeats, 1)
    return (
        (torch.cat((tokens[kept], padded[:, :-1])), torch.cat((targets[kept], padded[:, 1:]))),
        (tokens[held_out], targets[held_out]),
    )
