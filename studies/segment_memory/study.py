"""Does a compressive memory help that cannot see the future? Experiment 2 of the report character-systems.

    python -m studies segment_memory --corpus sotu

The report's models read every window twice, and the second time found keys and values of the whole window in
their memory, its targets included; what "carry" kept between windows was shuffled text. Here a window reads
earlier windows of its own document, in order, and all arms but infini_carry_shuffled read the same windows in
the same order.

    transformer, hrm       no memory: one layer; the hierarchical model, version 2 with its gradient mended
    input_*, infini_*      Infini-attention as input layer of the transformer, of hrm
    hidden_*               the transformer's own layer reads the memory
    hrm_memory_*           both layers of hrm read one, as inferred from the report's parameter count
    *_reset                an empty memory for every window: a control, with as many parameters
    *_carry                a memory of earlier windows
    infini_carry_shuffled  what a row read last, of shuffled windows; nothing at evaluation, as in the report
    infini_leak            infini_reset with the published leak

A model trained with a memory of earlier windows is judged twice more: against itself with an empty memory
("carried_minus_emptied") and with that of another place of the text ("carried_minus_foreign"). Published: the
report's set-up, the beginning of a corpus, with version 2 and its lost gradient; batches of 16 alone; and
infini_reset without its leak ("infini_no_leak"). Corrected: equal updates ("ppl") and equal FLOPs of training
("flops.ppl", those of the arm without memory), chosen on calibration text and judged on test text,
random seeds that differ in weights and in where windows begin. Differences are in nats, negative where the
first is better. At 500k characters only the arms without HRM run.

    passage_ppl.ARM          perplexity of the passage that the report reports on, which chose nothing
    word_ppl.ARM             perplexity per word of the test text: the unit of other models of WikiText-2
    more_parameters.infini   of the input layer, as a share of hrm's

Shapes: S random seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from offramp.systems.ensemble import AS_PUBLISHED, Ensemble, fit_members
from offramp.systems.objectives import Carried, Objective, cross_entropy
from offramp.systems.segment_memory.model import InfiniConfig, InfiniLM
from offramp.systems.segment_memory.streams import Streams, cut_streams
from offramp.systems.segment_memory.training import stream_updates, streams_nll
from studies.common.characters import (
    BATCH_SIZE,
    WINDOW,
    Characters,
    Sizes,
    corrected_splits,
    document_ids,
    published_1a,
)
from studies.common.comparison import (
    Compared,
    compared,
    corrected_outcome,
    differences,
    gains,
    limits,
    parameters,
    passage_ppl,
    published_outcome,
)
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.training import CorrectedRun, PublishedTraining
from studies.common.workers import run_arms


@dataclass(frozen=True)
class Arm:
    """A model and what its memory holds."""

    place: str
    mode: str
    hrm: bool
    reads: str = "earlier_windows"

    @property
    def core(self) -> str:
        return "hrm" if self.hrm else "transformer"


PUBLISHED_ARMS = {
    "hrm": Arm("none", "reset", True),
    "hrm_memory_reset": Arm("gated", "reset", True, "own_window"),
    "hrm_memory_carry": Arm("gated", "carry_shuffled", True, "own_window"),
    "infini_reset": Arm("input", "reset", True, "own_window"),
    "infini_carry": Arm("input", "carry_shuffled", True, "own_window"),
    "infini_no_leak": Arm("input", "reset", True),
}
CORRECTED_ARMS = {
    "transformer": Arm("none", "reset", False),
    "input_reset": Arm("input", "reset", False),
    "input_carry": Arm("input", "carry", False),
    "hidden_reset": Arm("hidden", "reset", False),
    "hidden_carry": Arm("hidden", "carry", False),
    "hrm": Arm("none", "reset", True),
    "infini_reset": Arm("input", "reset", True),
    "infini_carry": Arm("input", "carry", True),
    "infini_carry_shuffled": Arm("input", "carry_shuffled", True),
    "infini_leak": Arm("input", "reset", True, "own_window"),
    "hrm_memory_reset": Arm("gated", "reset", True),
    "hrm_memory_carry": Arm("gated", "carry", True),
}
ARMS = tuple(dict.fromkeys((*CORRECTED_ARMS, *PUBLISHED_ARMS)))
WORDS = ("hrm", "infini_reset")
"""Arms that the report sets beside models of words."""
PAIRS = (
    ("infini_reset", "hrm"),
    ("infini_carry", "hrm"),
    ("infini_carry", "infini_reset"),
    ("infini_carry_shuffled", "infini_reset"),
    ("infini_leak", "infini_reset"),
    ("infini_reset", "infini_no_leak"),
    ("infini_reset", "hrm_memory_reset"),
    ("hrm_memory_reset", "hrm"),
    ("hrm_memory_carry", "hrm"),
    ("input_reset", "transformer"),
    ("input_carry", "transformer"),
    ("input_carry", "input_reset"),
    ("hidden_reset", "transformer"),
    ("hidden_carry", "transformer"),
    ("hidden_carry", "hidden_reset"),
)


class PublishedSettings(PublishedTraining):
    """Of the published protocol."""

    segments: int
    """Times that a window is read, one update each."""


class CorrectedSettings(Settings):
    """Of the corrected protocol; a core is transformer or hrm."""

    updates: dict[str, dict[str, int]]
    """By size of the text and core."""
    look_every: int
    """Updates between two looks at the calibration text."""
    segments: dict[str, int]
    """Times that a window is read, one update each, by core."""
    rows: int
    """Read side by side in training."""
    held_out_rows: dict[str, int]
    """Read side by side of the calibration and the test text, by size of the text."""


@dataclass(frozen=True)
class Text:
    """One size of the text, and which document its characters are from."""

    size: str
    data: Characters
    documents: dict[str, Tensor]
    """By split."""


def published(job: Job) -> Outcome:
    """The report's arms as it ran them, with one random seed."""
    data = published_1a(job.text, Sizes.of(job.shared["characters"]))
    how = PublishedSettings.of(job.settings["published"])
    arms = [arm for arm in job.arms if arm in PUBLISHED_ARMS]
    results = run_arms(published_arm, [(data, arm, how, job.seeds[0]) for arm in arms], job.processes)
    outcome = published_outcome(dict(zip(arms, results)), derived)
    outcome.rows = [row | more_parameters(row) for row in outcome.rows]
    return outcome


def corrected(job: Job) -> Outcome:
    """The corrected arms on every size of the text that they are for, at equal updates and at equal FLOPs."""
    sizes, how = Sizes.of(job.shared["characters"]), CorrectedSettings.of(job.settings["corrected"])
    texts = {
        size: Text(size, corrected_splits(job.text, size, sizes), document_ids(job.text, size, sizes))
        for size in sizes.names(job.text.corpus)
    }
    places = [
        (size, arm)
        for size in texts
        for arm in job.arms
        if arm in CORRECTED_ARMS and (size != "500k" or not CORRECTED_ARMS[arm].hrm)
    ]
    jobs = [(texts[size], arm, how, job.seeds) for size, arm in places]
    results = dict(zip(places, run_arms(corrected_arm, jobs, job.processes)))
    outcome = corrected_outcome(results, len(job.seeds), derived)
    outcome.rows = [
        row | {name: value for size in texts for name, value in more_parameters(row, f"{size}.").items()}
        for row in outcome.rows
    ]
    return outcome


def more_parameters(row: Mapping[str, float], size: str = "") -> dict[str, float]:
    """By which share the input layer adds to the parameters of hrm, where both have been trained."""
    counts = [row.get(f"{size}parameters.{arm}") for arm in ("infini_reset", "hrm")]
    if counts[0] is None or counts[1] is None:
        return {}
    return {f"{size}more_parameters.infini": counts[0] / counts[1] - 1}


def build(arm: Arm, vocab_size: int, variant: str) -> InfiniLM:
    """The model of an arm; ``variant``: of the hierarchical model, v2_published loses a gradient."""
    return InfiniLM(
        InfiniConfig(vocab_size, WINDOW, place=arm.place, reads=arm.reads, hrm=variant if arm.hrm else None)
    )


def shuffled_batches(data: Characters, generator: torch.Generator) -> Streams:
    """One epoch of the training windows in whole batches, in random order; no window is said to begin a
    document."""
    tokens, targets = data.windows("train")
    steps = len(tokens) // BATCH_SIZE
    order = torch.randperm(len(tokens), generator=generator)[: steps * BATCH_SIZE].view(steps, BATCH_SIZE)
    return Streams(tokens[order], targets[order], torch.zeros_like(order, dtype=torch.bool), in_order=False)


def published_arm(data: Characters, name: str, how: PublishedSettings, seed: int) -> dict[str, float]:
    """Values of one arm as the report ran it: the best epoch, by the text that it is reported on."""
    arm = PUBLISHED_ARMS[name]
    ensemble = Ensemble(lambda seed: build(arm, data.vocab_size, "v2_published"), [seed])
    tokens, targets = data.windows("validation")
    validation = Streams(tokens[None], targets[None], torch.ones(1, len(tokens), dtype=torch.bool))
    epoch = len(data.windows("train")[0]) // BATCH_SIZE
    generator = torch.Generator().manual_seed(seed)
    (fitted,) = fit_members(
        ensemble,
        stream_updates(
            ensemble,
            lambda number: [shuffled_batches(data, generator)],
            arm.mode,
            segments=how.segments,
            how=AS_PUBLISHED,
        ),
        lambda members: streams_nll(members, validation, "reset", how.segments),
        looks=[epoch * number for number in range(1, how.epochs + 1)],
        patience=how.patience,
    )
    return {
        f"ppl.{name}": fitted.best_ppl,
        f"epoch.{name}": fitted.best_look,
        f"parameters.{name}": parameters(ensemble),
    }


def training_streams(data: Characters, documents: Tensor, rows: int, seeds: Sequence[int]) -> list[Streams]:
    """The training text of every random seed, whose windows begin at an offset of its own."""
    ids = data.splits["train"]
    offsets = [
        int(torch.randint(WINDOW, (), generator=torch.Generator().manual_seed(seed))) for seed in seeds
    ]
    length = len(ids) - WINDOW + 1
    return [
        cut_streams(ids[start : start + length], documents[start : start + length], WINDOW, rows)
        for start in offsets
    ]


def passes_over(streams: list[Streams], mode: str, seeds: Sequence[int]) -> Callable[[int], list[Streams]]:
    """What ``stream_updates`` reads in every pass: the streams, or a fresh order of their windows."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if mode != "carry_shuffled":
        return lambda number: streams
    return lambda number: [one.shuffled(generator) for one, generator in zip(streams, generators)]


@dataclass(kw_only=True)
class StreamRun(CorrectedRun):
    """A training over streams."""

    test: Callable[[str], Tensor]
    """Mean NLL (S,) on the test text, with the ensemble's weights and this mode of memory."""
    mode: str
    steps: int
    """Of one pass over the streams."""

    @property
    def batches_per_pass(self) -> int:
        return self.steps

    def _test(self) -> Tensor:
        return self.test(self.mode)


def corrected_arm(text: Text, name: str, how: CorrectedSettings, seeds: tuple[int, ...]) -> Compared:
    """One arm on one size of text, all random seeds together."""
    arm, data, documents = CORRECTED_ARMS[name], text.data, text.documents
    count, updates = how.segments[arm.core], how.updates[text.size][arm.core]
    ensemble = Ensemble(lambda seed: build(arm, data.vocab_size, "v2"), seeds)
    held_out = {
        split: cut_streams(data.splits[split], documents[split], WINDOW, how.held_out_rows[text.size])
        for split in ("calibration", "test")
    }
    without = replace(arm, place="none", mode="reset")
    within = limits(
        lambda seed: build(arm, data.vocab_size, "v2"),
        counted(count),
        data,
        updates,
        (lambda seed: build(without, data.vocab_size, "v2"), counted(count)),
    )
    training = training_streams(data, documents["train"], how.rows, seeds)
    judged = "reset" if arm.mode == "carry_shuffled" else arm.mode
    run = StreamRun(
        ensemble,
        counted(count),
        data,
        within.looks(how.look_every // count),
        mode=judged,
        steps=len(training[0].tokens),
        test=lambda mode: streams_nll(ensemble, held_out["test"], mode, count),
    )
    fit_members(
        ensemble,
        stream_updates(
            ensemble, passes_over(training, arm.mode, seeds), arm.mode, segments=count, how=AS_PUBLISHED
        ),
        lambda members: run.look(streams_nll(members, held_out["calibration"], judged, count)),
        looks=run.looks,
    )
    more: list[dict[str, float]] = [{} for _ in seeds]
    if text.size == "20k":
        more = passage_ppl(run, within.updates, lambda members: run.test(judged))
    result = compared(run, within)
    if arm.mode == "carry":
        held = {
            name: run.test(mode).tolist() for name, mode in (("emptied", "reset"), ("foreign", "foreign"))
        }
        more = [
            values | {f"carried_minus_{name}": carried - nll[place] for name, nll in held.items()}
            for place, (values, carried) in enumerate(zip(more, result.nll))
        ]
    if name in WORDS:
        per_word = characters_per_word(data, "test")
        more = [
            values | {"word_ppl": math.exp(min(nll * per_word, 100.0))}
            for values, nll in zip(more, result.nll)
        ]
    result.more = more
    return result


def characters_per_word(data: Characters, split: str) -> float:
    """Characters of a split for every word of it, the spaces between words included."""
    text = "".join(data.symbols[symbol] for symbol in data.splits[split].tolist())
    return len(text) / max(1, len(text.split()))


def counted(segments: int) -> Objective:
    """As many segments on the same window as training makes, for counting their FLOPs."""

    def loss(model: nn.Module, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        return cross_entropy(model(tokens, model.empty_memory(len(tokens)))[0], targets), ()

    return Objective(loss, lambda model, tokens: model(tokens, model.empty_memory(len(tokens)))[0], segments)


def derived(nll: dict[str, float]) -> dict[str, float]:
    """What follows from the losses of all arms."""
    return differences(nll, PAIRS) | {
        name: gain
        for name, gain in gains(nll, "hrm").items()
        if name.startswith(("gain.infini", "gain.hrm_memory"))
    }
