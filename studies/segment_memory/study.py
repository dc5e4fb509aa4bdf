"""Seed 001, experiment 2: does a compressive memory help once it cannot see the future and really holds earlier text?

    python -m studies.segment_memory.study --corpus sotu

The seed's models read every window twice, and the second time found keys and values of the whole window in their memory, its
targets included; what "carry" kept between windows was shuffled text. Here a window reads earlier windows of its own document,
in order, and all arms read the same windows in the same order:

    transformer, hrm            no memory: one layer; the hierarchical model, version 2 with its gradient mended
    input_*, infini_*           Infini-attention as input layer of the transformer, of hrm
    hidden_*                    the transformer's own layer reads the memory
    *_reset, *_carry            an empty memory for every window (a control: as many parameters), or one of earlier windows
    infini_leak                 infini_reset with the published leak

A model trained with a carried memory is judged twice more: against itself with an empty memory ("carried_minus_emptied") and
with that of another place of the text ("carried_minus_foreign"). Published: set-up 1A, version 2 with its bug, the memory in
hidden layers ("hrm_memory") as inferred from its parameter count; batches of 16 alone.
Corrected: equal updates ("ppl") and equal FLOPs of training ("flops.ppl", those of the arm without memory), chosen on
calibration text and judged on test text, 5 seeds that differ in weights and in where windows begin. Differences are in nats,
negative where the first is better. At 500k characters only the arms without HRM run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from offramp.systems.ensemble import AS_PUBLISHED, Ensemble, fit_members
from offramp.systems.objectives import Carried, Objective, cross_entropy
from offramp.systems.segment_memory.model import InfiniConfig, InfiniLM
from offramp.systems.segment_memory.streams import Streams, cut_streams
from offramp.systems.segment_memory.training import stream_updates, streams_nll
from studies.common.characters import (
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
from studies.common.comparison import (
    Compared,
    compared,
    corrected_values,
    differences,
    gains,
    learning_curves,
    limits,
    parameters,
    published_values,
)
from studies.common.results import study_params
from studies.common.text import Document, StudyText
from studies.common.training import CorrectedRun
from studies.common.workers import PUBLISHED_SEED, SEEDS, Outcome, both_protocols, study_main

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
    "hrm": Arm("none", "reset", True),
    "hrm_memory_reset": Arm("gated", "reset", True, "own_window"),
    "hrm_memory_carry": Arm("gated", "carry_shuffled", True, "own_window"),
    "infini_reset": Arm("input", "reset", True, "own_window"),
    "infini_carry": Arm("input", "carry_shuffled", True, "own_window"),
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
    "infini_leak": Arm("input", "reset", True, "own_window"),
}
ARMS = tuple(dict.fromkeys((*CORRECTED_ARMS, *PUBLISHED_ARMS)))
PAIRS = (
    ("infini_reset", "hrm"),
    ("infini_carry", "hrm"),
    ("infini_carry", "infini_reset"),
    ("infini_leak", "infini_reset"),
    ("hrm_memory_reset", "hrm"),
    ("hrm_memory_carry", "hrm"),
    ("input_reset", "transformer"),
    ("input_carry", "transformer"),
    ("input_carry", "input_reset"),
    ("hidden_reset", "transformer"),
    ("hidden_carry", "transformer"),
    ("hidden_carry", "hidden_reset"),
)


def build(arm: Arm, vocab_size: int, variant: str) -> InfiniLM:
    return InfiniLM(
        InfiniConfig(vocab_size, WINDOW, place=arm.place, reads=arm.reads, hrm=variant if arm.hrm else None)
    )


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
    epoch = len(data.windows("train")[0]) // BATCH_SIZE
    generator = torch.Generator().manual_seed(PUBLISHED_SEED)
    (fitted,) = fit_members(
        ensemble,
        stream_updates(
            ensemble,
            lambda number: [shuffled_batches(data, generator)],
            arm.mode,
            segments=settings["segments"],
            how=AS_PUBLISHED,
        ),
        lambda members: streams_nll(members, validation, "reset", settings["segments"]),
        looks=[epoch * number for number in range(1, settings["epochs"] + 1)],
        patience=settings["patience"],
    )
    return {
        f"ppl.{name}": fitted.best_ppl,
        f"epoch.{name}": fitted.best_look,
        f"parameters.{name}": parameters(ensemble),
    }


# Corrected ------------------------------------------------------------------------------------------------------------


def document_ids(text: StudyText, size: str) -> dict[str, Tensor]:
    """The document (N,) of every character of the splits that ``corrected`` makes."""
    if isinstance(text, OwnText):
        return {
            split: _ids(list(documents), None)
            for split, documents in (
                ("train", text.train),
                ("calibration", text.validation),
                ("test", text.test),
            )
        }
    held_out = list(text.validation)
    return {
        "train": _ids(list(text.train), SIZES[size]["train"]),
        "calibration": _ids(held_out, SIZES[size]["calibration"]),
        "test": _ids(held_out, SIZES[size]["test"]),
    }


def _ids(documents: list[Document], characters: int | None) -> Tensor:
    """Numbers of the first documents, repeated; these are removed from the list, as ``corrected`` removes them."""
    lengths: list[int] = []
    while documents and (characters is None or sum(lengths) < characters):
        lengths.append(len(documents.pop(0).text))
    return torch.repeat_interleave(torch.tensor(lengths))[:characters]


def training_streams(data: Characters, documents: Tensor, rows: int, seeds: Sequence[int]) -> list[Streams]:
    """The training text of every seed, whose windows begin at an offset of its own."""
    ids = data.splits["train"]
    offsets = [
        int(torch.randint(WINDOW, (), generator=torch.Generator().manual_seed(seed))) for seed in seeds
    ]
    length = len(ids) - WINDOW + 1
    return [
        cut_streams(ids[start : start + length], documents[start : start + length], WINDOW, rows)
        for start in offsets
    ]


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


def corrected_arm(
    text: StudyText, size: str, name: str, settings: dict[str, Any], seeds: Sequence[int]
) -> Compared:
    """One arm on one size of text, all seeds together."""
    arm, data, documents = CORRECTED_ARMS[name], corrected(text, size), document_ids(text, size)
    count, updates = settings["segments"][arm.core], settings["updates"][size][arm.core]
    ensemble = Ensemble(lambda seed: build(arm, data.vocab_size, "v2"), seeds)
    held_out = {
        split: cut_streams(data.splits[split], documents[split], WINDOW, settings["held_out_rows"][size])
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
    training = training_streams(data, documents["train"], settings["rows"], seeds)
    run = StreamRun(
        ensemble,
        counted(count),
        data,
        within.looks(settings["look_every"] // count),
        mode=arm.mode,
        steps=len(training[0].tokens),
        test=lambda mode: streams_nll(ensemble, held_out["test"], mode, count),
    )
    fit_members(
        ensemble,
        stream_updates(ensemble, lambda number: training, arm.mode, segments=count, how=AS_PUBLISHED),
        lambda members: run.look(streams_nll(members, held_out["calibration"], arm.mode, count)),
        looks=run.looks,
    )
    found = compared(run, within)
    if arm.mode == "carry":
        held = {
            name: run.test(mode).tolist() for name, mode in (("emptied", "reset"), ("foreign", "foreign"))
        }
        found.more = [
            {f"carried_minus_{name}": carried - values[seed] for name, values in held.items()}
            for seed, carried in enumerate(found.nll)
        ]
    return found


def counted(segments: int) -> Objective:
    """As many segments on the same window as training makes, for counting their FLOPs."""

    def loss(model: nn.Module, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        return cross_entropy(model(tokens, model.empty_memory(len(tokens)))[0], targets), ()

    return Objective(loss, lambda model, tokens: model(tokens, model.empty_memory(len(tokens)))[0], segments)


# Both -----------------------------------------------------------------------------------------------------------------


def derived(nll: dict[str, float]) -> dict[str, float]:
    """What follows from the losses of all arms."""
    return differences(nll, PAIRS) | {
        name: gain for name, gain in gains(nll, "hrm").items() if name.startswith("gain.infini")
    }


def run(
    text: StudyText,
    protocol: str,
    arms: Sequence[str],
    settings: dict[str, Any] = SETTINGS,
    seeds: Sequence[int] = tuple(SEEDS),
) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, published_jobs, jobs = Outcome(), [], []
    if protocol in ("published", "both") and text.corpus != "own":
        published_jobs = [(text, arm, settings["published"]) for arm in arms if arm in PUBLISHED_ARMS]
    if protocol in ("corrected", "both"):
        jobs = [
            (text, size, arm, settings["corrected"], seeds)
            for size in SIZES_OF[text.corpus]
            for arm in arms
            if arm in CORRECTED_ARMS and (size != "500k" or not CORRECTED_ARMS[arm].hrm)
        ]
    published, found = both_protocols(published_arm, published_jobs, corrected_arm, jobs)
    if published_jobs:
        outcome.published = published_values(published, [arm for _, arm, _ in published_jobs], derived)
    if jobs:
        by_size: dict[str, dict[str, Compared]] = {size: {} for _, size, *_ in jobs}
        for (_, size, arm, *_), one in zip(jobs, found):
            by_size[size][arm] = one
        outcome.corrected = [
            row | _inferred_sizes(arms, by_size) for row in corrected_values(by_size, len(seeds), derived)
        ]
        outcome.figures["learning_curves"] = learning_curves(by_size)
    return outcome


def _inferred_sizes(arms: Sequence[str], sizes: Iterable[str]) -> dict[str, float]:
    """Parameters of the arms that are published only: their architecture is inferred from them."""
    counts = {
        arm: parameters(Ensemble(lambda seed, arm=arm: build(PUBLISHED_ARMS[arm], len(SYMBOLS), "v2"), [0]))
        for arm in arms
        if arm not in CORRECTED_ARMS
    }
    return {f"{size}.parameters.{arm}": count for size in sizes for arm, count in counts.items()}


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
