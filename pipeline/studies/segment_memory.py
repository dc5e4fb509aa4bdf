"""Seed 001, experiment 2: does a compressive memory help once it cannot see the future and really holds earlier text?

    python -m pipeline.studies.segment_memory --corpus sotu

The seed's models read every window twice, and the second time found keys and values of the whole window in their memory, its
targets included; what "carry" kept between windows was shuffled text. Here a window reads earlier windows of its own document,
in order, and all arms read the same windows in the same order:

    transformer, hrm            no memory: one layer; the hierarchical model, version 2 with its gradient mended
    input_*, infini_*           Infini-attention as input layer of the transformer, of hrm
    hidden_*                    the transformer's own layer reads the memory
    *_reset, *_carry            an empty memory for every window (a control: as many parameters), or one of earlier windows
    infini_leak                 infini_reset with the published leak

A model trained with a carried memory is judged twice more: with an empty memory ("emptied") and with that of another place of
the text ("foreign"). Published: set-up 1A, version 2 with its bug, the memory in hidden layers ("hrm_memory") as inferred from
its parameter count; batches of 16 alone. Corrected: equal updates ("ppl") and equal FLOPs of training ("flops.ppl", those of
the arm without memory), chosen on calibration text and judged on test text, 5 seeds that differ in weights and in where
windows begin. Differences are in nats, negative where the first is better. At 500k characters only the transformer runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.corpus.streams import Streams, cut_streams
from offramp.models.infini import InfiniConfig, InfiniLM
from offramp.training.ensemble import AS_PUBLISHED, Ensemble, batch_flops
from offramp.training.objectives import Carried, Objective, cross_entropy
from offramp.training.streams import streams_nll, train_streams
from pipeline.studies._arms import PUBLISHED_SEED, SEEDS, Outcome, run_arms, study_main
from pipeline.studies._characters import (
    BATCH_SIZE,
    SIZES,
    SIZES_OF,
    SYMBOLS,
    WINDOW,
    Characters,
    OwnText,
    corrected,
    published_1a,
)
from pipeline.studies._curves import panels_figure
from pipeline.studies._results import study_params
from pipeline.studies._text import Document, StudyText
from pipeline.studies._training import CorrectedRun

STUDY = "segment_memory"
SETTINGS: dict[str, Any] = study_params(STUDY)
FLAWS = [
    "F4 the lower level of the hierarchical model gets no gradient: it stays as drawn",
    "F5 from the second segment on, memory holds the window itself: every position reads keys and values of later ones",
    "F6 half of the local attention is gated away in favour of a memory that is empty in the first segment",
    "F7 what is carried over in training comes from shuffled windows, and evaluation starts empty",
]


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
    "hrm": Arm("none", "reset", True), "hrm_memory_reset": Arm("gated", "reset", True, "own_window"),
    "hrm_memory_carry": Arm("gated", "carry_shuffled", True, "own_window"),
    "infini_reset": Arm("input", "reset", True, "own_window"), "infini_carry": Arm("input", "carry_shuffled", True, "own_window"),
}
CORRECTED_ARMS = {
    "transformer": Arm("none", "reset", False), "input_reset": Arm("input", "reset", False), "input_carry": Arm("input", "carry", False),
    "hidden_reset": Arm("hidden", "reset", False), "hidden_carry": Arm("hidden", "carry", False),
    "hrm": Arm("none", "reset", True), "infini_reset": Arm("input", "reset", True), "infini_carry": Arm("input", "carry", True),
    "infini_leak": Arm("input", "reset", True, "own_window"),
}
ARMS = tuple(dict.fromkeys((*CORRECTED_ARMS, *PUBLISHED_ARMS)))
DIFFERENCES = (
    ("infini_reset", "hrm"), ("infini_carry", "hrm"), ("infini_carry", "infini_reset"), ("infini_leak", "infini_reset"),
    ("hrm_memory_reset", "hrm"), ("hrm_memory_carry", "hrm"), ("input_reset", "transformer"), ("input_carry", "transformer"),
    ("input_carry", "input_reset"), ("hidden_reset", "transformer"), ("hidden_carry", "transformer"), ("hidden_carry", "hidden_reset"),
    *((f"{name}_carry", f"{name}_carry_{other}") for name in ("infini", "input", "hidden") for other in ("emptied", "foreign")),
)


def build(arm: Arm, vocab_size: int, variant: str) -> InfiniLM:
    return InfiniLM(InfiniConfig(vocab_size, WINDOW, place=arm.place, reads=arm.reads, hrm=variant if arm.hrm else None))


def parameters(ensemble: Ensemble) -> int:
    """Of one model, those included that no loss reaches."""
    return sum(weight[0].numel() for weight in ensemble.weights.values())


# Published ------------------------------------------------------------------------------------------------------------

def shuffled_batches(data: Characters, generator: torch.Generator) -> Streams:
    """One epoch of the training windows in whole batches, in random order; no window is said to begin a document."""
    tokens, targets = data.windows("train")
    steps = len(tokens) // BATCH_SIZE
    order = torch.randperm(len(tokens), generator=generator)[: steps * BATCH_SIZE].view(steps, BATCH_SIZE)
    return Streams(tokens[order], targets[order], torch.zeros_like(order, dtype=torch.bool), in_order=False)


def published_arm(text: StudyText, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm as the seed ran it: the best epoch, by the text that it is reported on."""
    arm, data = PUBLISHED_ARMS[name], published_1a(text)
    ensemble = Ensemble(lambda seed: build(arm, data.vocab_size, "v2_published"), [PUBLISHED_SEED])
    tokens, targets = data.windows("validation")
    validation = Streams(tokens[None], targets[None], torch.ones(1, len(tokens), dtype=torch.bool))
    epoch = len(data.windows("train")[0]) // BATCH_SIZE * settings["segments"]
    found: list[float] = []

    def looked(updates: int) -> bool:
        if updates % epoch == 0:
            found.append(streams_nll(ensemble, validation, "reset", settings["segments"]).item())
        return len(found) - (1 + found.index(min(found))) >= settings["patience"] if found else False

    generator = torch.Generator().manual_seed(PUBLISHED_SEED)
    train_streams(ensemble, lambda number: [shuffled_batches(data, generator)], arm.mode, settings["segments"],
                  settings["epochs"] * epoch, AS_PUBLISHED, looked)
    return {f"ppl.{name}": math.exp(min(found)), f"epoch.{name}": 1 + found.index(min(found)),
            f"parameters.{name}": parameters(ensemble)}


# Corrected ------------------------------------------------------------------------------------------------------------

def document_ids(text: StudyText, size: str) -> dict[str, Tensor]:
    """The document (N,) of every character of the splits that ``corrected`` makes."""
    if isinstance(text, OwnText):
        return {split: _ids(list(documents), None)
                for split, documents in (("train", text.train), ("calibration", text.validation), ("test", text.test))}
    held_out = list(text.validation)
    return {"train": _ids(list(text.train), SIZES[size]["train"]), "calibration": _ids(held_out, SIZES[size]["calibration"]),
            "test": _ids(held_out, SIZES[size]["test"])}


def _ids(documents: list[Document], characters: int | None) -> Tensor:
    """Numbers of the first documents, repeated; these are removed from the list, as ``corrected`` removes them."""
    lengths: list[int] = []
    while documents and (characters is None or sum(lengths) < characters):
        lengths.append(len(documents.pop(0).text))
    return torch.repeat_interleave(torch.tensor(lengths))[:characters]


def training_streams(data: Characters, documents: Tensor, rows: int, seeds: Sequence[int]) -> list[Streams]:
    """The training text of every seed, whose windows begin at an offset of its own."""
    ids = data.splits["train"]
    offsets = [int(torch.randint(WINDOW, (), generator=torch.Generator().manual_seed(seed))) for seed in seeds]
    length = len(ids) - WINDOW + 1
    return [cut_streams(ids[start : start + length], documents[start : start + length], WINDOW, rows) for start in offsets]


@dataclass
class Found:
    """What one arm came to; lists over seeds, NLL in nats of the test text by what the memory holds there."""

    nll: dict[str, list[float]]
    """At equal updates; "" is as trained."""
    flops_nll: list[float]
    """At equal FLOPs, as trained."""
    epochs: list[float]
    parameters: int
    curves: list[dict[float, float]]


def corrected_arm(text: StudyText, size: str, name: str, settings: dict[str, Any], seeds: Sequence[int]) -> Found:
    """One arm on one size of text, all seeds together."""
    arm, data, documents = CORRECTED_ARMS[name], corrected(text, size), document_ids(text, size)
    count, updates, looks = settings["segments"][arm.core], settings["updates"][size], settings["looks"][size]
    ensemble = Ensemble(lambda seed: build(arm, data.vocab_size, "v2"), seeds)
    held_out = {split: cut_streams(data.splits[split], documents[split], WINDOW, settings["held_out_rows"][size])
                for split in ("calibration", "test")}
    training = training_streams(data, documents["train"], settings["rows"], seeds)
    run = CorrectedRun(ensemble, counted(count), data, max(1, updates // (looks * count)), _flops(ensemble, data, count))

    def looked(made: int) -> bool:
        if made % (run.batches_per_look * count) == 0:
            run.calibration.append(streams_nll(ensemble, held_out["calibration"], arm.mode, count).tolist())
            run.weights.append(ensemble.snapshot())
        return len(run.calibration) == looks

    train_streams(ensemble, lambda number: training, arm.mode, count, updates, AS_PUBLISHED, looked)
    without = Ensemble(lambda seed: build(Arm("none", "reset", arm.hrm), data.vocab_size, "v2"), [0])
    run.choose(run.looks_within(flops=updates / count * _flops(without, data, count)))
    flops_nll = streams_nll(ensemble, held_out["test"], arm.mode, count).tolist()
    chosen = run.choose(looks)
    modes = {"": arm.mode} | ({"_emptied": "reset", "_foreign": "foreign"} if arm.mode == "carry" else {})
    nll = {held: streams_nll(ensemble, held_out["test"], mode, count).tolist() for held, mode in modes.items()}
    epochs = [(look + 1) * run.batches_per_look / len(training[0].tokens) for look in chosen]
    return Found(nll, flops_nll, epochs, parameters(ensemble), run.curves())


def counted(segments: int) -> Objective:
    """As many segments on the same window as training makes, for counting their FLOPs."""
    def loss(model: nn.Module, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        return cross_entropy(model(tokens, model.empty_memory(len(tokens)))[0], targets), ()

    return Objective(loss, lambda model, tokens: model(tokens, model.empty_memory(len(tokens)))[0], segments)


def _flops(ensemble: Ensemble, data: Characters, segments: int) -> int:
    """Of one model's training on one batch."""
    return batch_flops(ensemble, counted(segments), *(part[:BATCH_SIZE] for part in data.windows("train")))


# Both -----------------------------------------------------------------------------------------------------------------

def differences(nll: dict[str, float]) -> dict[str, float]:
    """In nats, of the arms that there are, and the share of hrm's perplexity that a memory at its input saves."""
    out = {f"diff.{one}_minus_{other}": nll[one] - nll[other] for one, other in DIFFERENCES if {one, other} <= set(nll)}
    gains = {arm: 1 - math.exp(nll[arm] - nll["hrm"]) for arm in ("infini_reset", "infini_carry") if {arm, "hrm"} <= set(nll)}
    return out | {f"gain.{arm}": gain for arm, gain in gains.items()}


def _values(size: str, found: dict[str, Found], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One dict per seed with all keys of a size; models that are only published give their number of parameters."""
    inferred = Ensemble(lambda seed: build(PUBLISHED_ARMS["hrm_memory_reset"], len(SYMBOLS), "v2"), [0])
    counts = {"hrm_memory_reset": parameters(inferred)} | {arm: one.parameters for arm, one in found.items()}
    rows = []
    for place in range(len(seeds)):
        nll = {arm + held: values[place] for arm, one in found.items() for held, values in one.nll.items()}
        flops = {arm: one.flops_nll[place] for arm, one in found.items()}
        row: dict[str, float] = {}
        for prefix, losses in (("", nll), ("flops.", flops)):
            row |= {f"{prefix}ppl.{arm}": math.exp(value) for arm, value in losses.items()}
            row |= {prefix + name: value for name, value in differences(losses).items()}
        row |= {f"epoch.{arm}": one.epochs[place] for arm, one in found.items()}
        row |= {f"parameters.{arm}": count for arm, count in counts.items()}
        rows.append({f"{size}.{name}": value for name, value in row.items()})
    return rows


def run(text: StudyText, protocol: str, arms: Sequence[str], settings: dict[str, Any] = SETTINGS,
        seeds: Sequence[int] = tuple(SEEDS)) -> Outcome:
    """Both protocols on one text."""
    outcome = Outcome()
    if protocol in ("published", "both") and text.corpus != "own":
        chosen = [arm for arm in arms if arm in PUBLISHED_ARMS]
        found = run_arms(published_arm, [(text, arm, settings["published"]) for arm in chosen])
        values = {name: value for arm in found for name, value in arm.items()}
        outcome.published = values | differences({arm: math.log(values[f"ppl.{arm}"]) for arm in chosen})
    if protocol in ("corrected", "both"):
        _run_corrected(outcome, text, [arm for arm in arms if arm in CORRECTED_ARMS], settings["corrected"], seeds)
    return outcome


def _run_corrected(outcome: Outcome, text: StudyText, arms: Sequence[str], settings: dict[str, Any], seeds: Sequence[int]) -> None:
    jobs = [(size, arm) for size in SIZES_OF[text.corpus] for arm in arms if size != "500k" or not CORRECTED_ARMS[arm].hrm]
    found = dict(zip(jobs, run_arms(corrected_arm, [(text, size, arm, settings, seeds) for size, arm in jobs])))
    sizes = {size: {arm: found[size, arm] for place, arm in jobs if place == size} for size, _ in jobs}
    parts = [_values(size, of_size, seeds) for size, of_size in sizes.items()]
    outcome.corrected = [{name: value for part in parts for name, value in part[place].items()} for place in range(len(seeds))]
    panels = {f"{size} characters": {arm: one.curves for arm, one in of_size.items()} for size, of_size in sizes.items()}
    outcome.figures["learning_curves"] = panels_figure("Perplexity by update, calibration text", panels, "text", "updates",
                                                       "perplexity", log=True)


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
