"""What is a gate worth that lets a language model decline to speak? (Report selective-output, the gate.)

The report found a perplexity near 150 in training and one near 1200 of ordinary next tokens in use, called
the learnable gate a failure and went over to fixed skips. But its targets were carried over while the input
went on, so that nearly all of them had been read already, and its labels were shifted twice: the gate had no
fair trial. The arms (``studies.common.selective_models.training``) take these two flaws apart, and hold a
gate that learns from what a skipped step buys against a threshold on entropy and against fixed skips, at the
same share of skipped steps.

Published: the report's recipe at a small size (64 wide instead of 512, two layers instead of six, 3,000
windows instead of 5,000), for up to 12 epochs, as many as the report's training had before it stopped; random
seed 42, judged on the windows that stopped it.
Corrected: equal updates, documents split, chosen on calibration and judged on test windows, three random
seeds. ordinary_long has twice the updates, and the flawed losses, arms under their own names, have as many
as it takes to learn what they leak.

``ppl`` is of ordinary next tokens without skips, ``rule_ppl`` of what the arm's own rule of training
scores; ``spoken`` and ``skipping`` are at equal shares (``coverage``). Differences are in nats, negative
where the first is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.systems.selective_output.model import SelectiveLM, sampled, write
from offramp.systems.selective_output.training import Attempts, CarryOver, lags, mean_score
from studies.common.curves import panels_figure
from studies.common.results import over_seeds
from studies.common.selective_models.training import (
    ARMS,
    SelectiveModels,
    Windows,
    gates_of,
    method_of,
    published_parameters,
    train_corrected,
    train_published,
)
from studies.common.settings import Settings
from studies.common.study import Job, Outcome, Protocol
from studies.common.subwords import Subwords, subwords
from studies.common.workers import run_arms
from studies.selective_output.coverage import (
    AttemptStatistics,
    attempt_statistics,
    coverage_curves,
    gate_figures,
    place_nll,
    skipping_nll,
    spoken_nll,
)

PUBLISHED_ARMS = ("ordinary", "carried", "leak_only", "shift_only", "threshold_alone", "fixed_carried")
CORRECTED_ARMS = tuple(arm for arm in ARMS if arm != "fixed_carried")
"""``fixed_carried`` without its leak is ``always``."""
SKIPPING = ("straight_through", "score_function", "evenly", "always")
"""Arms whose skipped steps are trained."""
GATED = ("ordinary", "carried", "straight_through", "score_function")
"""Arms whose gate is looked at."""
SHOWN = {
    "ordinary": "gate trained towards entropy",
    "straight_through": "gate trained on what a skipped step buys",
}
"""Arms whose curves are drawn."""
COMPARED = (
    ("carried", "ordinary"),
    ("fixed_carried", "ordinary"),
    ("leak_only", "ordinary"),
    ("shift_only", "ordinary"),
    ("threshold_alone", "ordinary"),
    ("carried", "fixed_carried"),
)
"""Arms whose perplexities of next tokens are held against each other, the first minus the second."""


class Generated(Settings):
    """Text that the models write."""

    prompts: dict[Protocol, int]
    """How many, by protocol."""
    prompt: int
    """Tokens of each."""
    tokens: int
    """Written after each."""


class SelectiveOutput(Settings):
    """The settings of this study."""

    coverages: list[float]
    """Shares of tokens spoken, of the curves."""
    edges: list[int]
    """Between places of a window that are looked at together."""
    generated: Generated


@dataclass
class Measured:
    """One arm and random seed: values without the arm's name, and curves of what is spoken by score."""

    values: dict[str, float]
    curves: dict[str, dict[float, float]] = field(default_factory=dict)


def measure(
    model: SelectiveLM,
    arm: str,
    windows: Windows,
    protocol: Protocol,
    models: SelectiveModels,
    settings: SelectiveOutput,
) -> Measured:
    """Everything that both protocols say of a model on some windows."""
    method = method_of(arm, models)
    attempts = attempt_statistics(model, *windows, method.max_skip if isinstance(method, Attempts) else 0)
    first = attempts.nll[0]
    nll, rule = float(first.mean()), mean_score(model, method, *windows)
    values = {"ppl": math.exp(nll), "rule_ppl": math.exp(rule)}
    if isinstance(method, CarryOver):
        values["mismatch"] = nll - rule
        values |= leak(method.spoken(gates_of(model, windows[0])), method.double_shift)
    buckets = place_nll(first, attempts.place, settings.edges)
    values |= {f"place_ppl.{number}": math.exp(value) for number, value in enumerate(buckets)}
    values["place_change"] = buckets[-1] - buckets[0]
    if arm in GATED:
        values |= gate_figures(attempts.gate[0], attempts.entropy[0])
        values["gate_target_gap"] = float(
            attempts.gate[0].mean() - (1 - attempts.entropy[0].mean() / math.log(model.config.vocab_size))
        )
        values |= generated(model, windows, protocol, settings.generated)
    values |= spoken(attempts, arm, models.spoken_share)
    if isinstance(method, Attempts):
        values |= skipping(attempts, rule, arm, models.skips_per_token)
        after = method.spoken_after(
            *(torch.from_numpy(part) for part in (attempts.gate[:-1], attempts.place))
        )
        values["rule_skips"] = float((after * torch.arange(len(after)).unsqueeze(1)).sum(0).mean())
    scores = {
        "gate": attempts.gate[0],
        "entropy": -attempts.entropy[0],
        "at random": attempts.scores()["random"],
        "with hindsight": -first,
    }
    return Measured(values, coverage_curves(scores, first, settings.coverages) if arm in SHOWN else {})


def leak(speaks: Tensor, double_shift: bool) -> dict[str, float]:
    """What the published loss reveals, of places that speak, ``speaks`` (B, T - 1).

    The share of scored targets that are among the inputs, how far behind the newest input targets lie, and
    how many places are silent.
    """
    behind = lags(speaks, double_shift)[speaks].double()
    return {
        "visible": float((behind >= 0).double().mean()),
        "lag": float(behind.mean()),
        "silent": 1 - float(speaks.double().mean()),
    }


def spoken(attempts: AttemptStatistics, arm: str, share: float) -> dict[str, float]:
    """Keeping silent: NLL of the published share of tokens, by score, and what the gate is better or worse
    by."""
    first, scores = attempts.nll[0], attempts.scores()
    entropy = spoken_nll(scores["entropy"], first, share)
    values = {
        "spoken_ppl.entropy": math.exp(entropy),
        "diff.spoken.entropy_minus_all": entropy - float(first.mean()),
    }
    if arm in GATED:
        gate = spoken_nll(scores["gate"], first, share)
        values |= {
            "spoken_ppl.gate": math.exp(gate),
            "diff.spoken.gate_minus_entropy": gate - entropy,
            "diff.spoken.gate_minus_all": gate - float(first.mean()),
        }
    return values


def skipping(attempts: AttemptStatistics, rule: float, arm: str, skips: float) -> dict[str, float]:
    """Skipped steps: what they buy, and by whom they are best placed where a share ``skips`` of the tokens
    takes one."""
    first, last, scores = attempts.nll[0], attempts.nll[-1], attempts.scores()
    random = float((1 - skips) * first.mean() + skips * last.mean())
    nll = {name: skipping_nll(scores[name], attempts.nll, skips) for name in ("entropy", "oracle")}
    nll["random"] = random
    if arm in GATED:
        nll["gate"] = skipping_nll(scores["gate"], attempts.nll, skips)
    values = {f"skipping_nll.{name}": value for name, value in nll.items()} | {
        "skip_gain": float((first - last).mean()),
        "rule_nll": rule,
    }
    values["diff.skipping.entropy_minus_random"] = nll["entropy"] - random
    if arm in GATED:
        values |= {
            "diff.skipping.gate_minus_random": nll["gate"] - random,
            "diff.skipping.gate_minus_entropy": nll["gate"] - nll["entropy"],
            "gate_gain_r": float(np.corrcoef(attempts.gate[0], first - last)[0, 1]),
        }
    return values


def generated(
    model: SelectiveLM, windows: Windows, protocol: Protocol, settings: Generated
) -> dict[str, float]:
    """Steps that a text takes where the model writes, and the share of them that are skipped; as published,
    it drops its context after every token."""
    generator, prompts = torch.Generator().manual_seed(0), settings.prompts[protocol]
    places = torch.linspace(0, len(windows[0]) - 1, min(prompts, len(windows[0]))).long()
    texts = [
        write(
            model,
            row,
            settings.tokens,
            1,
            choose=sampled(generator),
            keeps_context=protocol == "corrected",
        )
        for row in windows[0][places, : settings.prompt].tolist()
    ]
    steps = sum(text.steps for text in texts)
    return {
        "generated_steps": steps / len(texts),
        "generated_skip_share": sum(text.skips for text in texts) / steps,
    }


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's recipe."""
    models, settings, data = _given(job)
    arms = [arm for arm in PUBLISHED_ARMS if arm in job.arms]
    if not arms:
        return Outcome([])
    jobs = [(data, arm, job.seeds[0], models, settings) for arm in arms]
    of_arms = run_arms(published_arm, jobs, job.processes)
    values = {name: value for of_arm in of_arms for name, value in of_arm.items()}
    figures = {"arms_published": arms_table([values], arms)}
    return Outcome([values | comparisons(values) | published_parameters()], figures)


def published_arm(
    data: Subwords, arm: str, seed: int, models: SelectiveModels, settings: SelectiveOutput
) -> dict[str, float]:
    """Values of one arm as the report ran it."""
    run = train_published(data, arm, seed, models)
    values = measure(run.model, arm, run.chosen_by, "published", models, settings).values | run.progress()
    return {f"{name}.{arm}": value for name, value in values.items()}


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """The same losses and the fair ones, on documents that were not trained on."""
    models, settings, data = _given(job)
    arms = [arm for arm in CORRECTED_ARMS if arm in job.arms]
    if not arms:
        return Outcome([])
    jobs = [(data, arm, seed, models, settings) for arm in arms for seed in job.seeds]
    trained = run_arms(corrected_arm, jobs, job.processes)
    measured = {(arm, seed): one for (_, arm, seed, *_), one in zip(jobs, trained)}
    rows = []
    for seed in job.seeds:
        values = {
            f"{name}.{arm}": value for arm in arms for name, value in measured[arm, seed].values.items()
        }
        rows.append(values | comparisons(values) | published_parameters())
    panels = {
        SHOWN[arm]: {
            score: [measured[arm, seed].curves[score] for seed in job.seeds]
            for score in measured[arm, job.seeds[0]].curves
        }
        for arm in arms
        if arm in SHOWN
    }
    curves = panels_figure(
        "Perplexity of what is spoken, by who decides",
        panels,
        "model",
        "share spoken",
        "perplexity",
        log=True,
    )
    return Outcome(rows, {"arms_corrected": arms_table(rows, arms), "spoken": curves})


def corrected_arm(
    data: Subwords, arm: str, seed: int, models: SelectiveModels, settings: SelectiveOutput
) -> Measured:
    """One arm and random seed on test windows."""
    run = train_corrected(data, arm, seed, models)
    test = data.windows("test", models.window, models.corrected.test_windows)
    measured = measure(run.model, arm, test, "corrected", models, settings)
    measured.values |= run.progress()
    return measured


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[SelectiveModels, SelectiveOutput, Subwords]:
    """Settings of the models and of this study, and the text as sub-words."""
    models = SelectiveModels.of(job.shared["selective_models"])
    data = subwords(job.text, models.vocab_size, models.held_out, models.documents)
    return models, SelectiveOutput.of(job.settings), data


def comparisons(values: Mapping[str, float]) -> dict[str, float]:
    """What follows from several arms of one random seed, as far as they are there."""
    differences = {}
    nll = {arm: math.log(values[f"ppl.{arm}"]) for arm in ARMS if f"ppl.{arm}" in values}
    rule = {arm: values[f"rule_nll.{arm}"] for arm in SKIPPING if f"rule_nll.{arm}" in values}
    for one, other in COMPARED:
        if {one, other} <= set(nll):
            differences[f"diff.{one}_minus_{other}"] = nll[one] - nll[other]
    for arm, value in rule.items():
        for other in ("ordinary", "ordinary_long"):
            if other in nll:
                differences[f"diff.{arm}_minus_{other}"] = value - nll[other]
    key_of = {
        "gate": "skipping_nll.gate.straight_through",
        "score_function": "skipping_nll.gate.score_function",
        "entropy": "skipping_nll.entropy.evenly",
        "fixed": "rule_nll.evenly",
    }
    placed = {name: values[key] for name, key in key_of.items() if key in values}
    for one, other in (
        ("gate", "entropy"),
        ("gate", "fixed"),
        ("entropy", "fixed"),
        ("score_function", "gate"),
    ):
        if {one, other} <= set(placed):
            differences[f"diff.placed.{one}_minus_{other}"] = placed[one] - placed[other]
    mismatch = {arm: values[f"mismatch.{arm}"] for arm in ARMS if f"mismatch.{arm}" in values}
    return differences | attribution(mismatch)


def attribution(mismatch: Mapping[str, float]) -> dict[str, float]:
    """The published mismatch in nats by its causes, and their shares of it.

    A cause's part is its mean effect, taken out first or last.
    """
    if not {"carried", "leak_only", "shift_only", "ordinary"} <= set(mismatch):
        return {}
    both, leaks, shifts, none = (mismatch[arm] for arm in ("carried", "leak_only", "shift_only", "ordinary"))
    leak, shift = ((leaks - none) + (both - shifts)) / 2, ((shifts - none) + (both - leaks)) / 2
    return {
        "mismatch_from.leak": leak,
        "mismatch_from.double_shift": shift,
        "mismatch_share.leak": leak / (both - none),
        "mismatch_share.double_shift": shift / (both - none),
    }


def arms_table(rows: Sequence[Mapping[str, float]], arms: Sequence[str]) -> dict[str, Any]:
    """A row per arm: what its own rule scores, next tokens, and the share of scored targets that had been
    read."""
    cells: Mapping[str, Mapping[str, float | None]]
    if len(rows) > 1:
        cells = over_seeds(list(rows))
    else:
        cells = {key: {"value": value, "low": None, "high": None} for key, value in rows[0].items()}
    columns = ["rule_ppl", "ppl", "visible"]
    return {
        "title": "Perplexity by the rule of training and of next tokens",
        "columns": ["arm", "by its own rule", "next token", "targets already read"],
        "note": "The last column: share of the scored targets that are among the inputs.",
        "rows": [[arm, *(cells.get(f"{column}.{arm}") for column in columns)] for arm in arms],
    }
