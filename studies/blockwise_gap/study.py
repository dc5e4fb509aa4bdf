"""Why is the final perplexity of exit-labels worse than in training? And is block-wise training any good?

An open question of that report, so there is no published protocol: every switch of block-wise training turned
on its own, from the corrected configuration towards the report's and from the report's towards the corrected
one, on the same documents; and joint and final training at equal training FLOPs. Routing is executed on test
documents at the report's exit ratio, by max softmax with a threshold from calibration documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from offramp.artifacts.artifact import Artifact
from offramp.models.native import BlockwiseLM
from offramp.routing.executor import Executor
from offramp.routing.split import run_split
from offramp.states.statistics import Readout, predictions
from studies.common.exit_choice import (
    ConfidencePolicy,
    Views,
    divergences,
    fit_view,
    losses,
    standings,
)
from studies.common.product_path import Recipe, SmallModel
from studies.common.results import over_seeds
from studies.common.study import Job, Outcome
from studies.common.switch_models import (
    SWITCHES,
    recipe,
    switch_data,
    switch_model,
    trained_and_held_back,
)
from studies.common.workers import run_arms

ARMS = tuple(arm for arm in SWITCHES if "three exits" not in arm)
"""Those that are trained; ``exited_state`` is a switch of routing alone."""

FROM_BASE = {
    "head frozen": "head: frozen",
    "head shared": "head: shared",
    "hard tokens": "tokens: hard",
    "hard tokens repacked": "tokens: hard and context: repack",
    "embedding frozen": "embedding: frozen",
    "base, exited state input": "exited_state: input",
}
FROM_PUBLISHED = {
    "published, embedding trained": "embedding: trained",
    "published, head frozen": "head: frozen",
    "published, context kept": "context: keep",
    "published, all tokens in context": "tokens: all and context: keep",
    "published, exited state output": "exited_state: output",
}
FROZEN_HEAD = "published, head frozen"
BATCH = 64
"""Sequences in a forward pass."""


def corrected(job: Job) -> Outcome:
    """Every arm and random seed, what follows from arms that are there, and the tables and sentences that
    intervals support.

    Tables need all arms and more than one random seed.
    """
    sizes, fitting = job.shared["switch_models"], job.shared["exit_classifier"]
    data = switch_data(job.text, job.cache, sizes)
    pairs = [(arm, seed) for arm in job.arms for seed in job.seeds]
    jobs = [(arm, recipe(arm, seed, job.cache, sizes), data, fitting, job.settings) for arm, seed in pairs]
    by_seed: dict[int, dict[str, float]] = {seed: {} for seed in job.seeds}
    for (_, seed), measured in zip(pairs, run_arms(make_and_measure, jobs, job.processes), strict=True):
        for arm, values in measured.items():
            by_seed[seed] |= {f"{arm}:{key}": value for key, value in values.items()}
    rows = [values | differences(values) for values in by_seed.values()]
    if len(rows) < 2 or job.arms != ARMS:
        return Outcome(rows)
    figures, sentences = report(over_seeds(rows), job.settings["fractions"])
    return Outcome(rows, figures, sentences)


def make_and_measure(
    arm: str, recipe: Recipe, data: Artifact, fitting: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """One arm and random seed, in a process of its own."""
    return measure(arm, switch_model(recipe, data), fitting, settings)


def measure(
    arm: str, model: SmallModel, fitting: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Values by arm: of the trained one, and of what it becomes when exited tokens stand for something else.
    NLL in nats.

    ``exit_0``, ``full`` on test documents; ``exit_0_same_documents`` on held-back windows of training
    documents; ``routed`` at the exit ratio by max softmax, ``share`` that left, ``random`` at that share;
    ``learned.<share>`` by a gain classifier, ``attained.<share>`` its share of the way from random exits to
    the divergence oracle.
    """
    loss, lm, views = losses(model.test), model.load(), Views(model, 0)
    of_model = {
        "exit_0": float(loss[0].mean()),
        "full": float(loss[-1].mean()),
        "exit_0_same_documents": first_exit_nll(lm, model.data),
    }
    classifier, _ = fit_view(model, views, "state", "gain", fitting["hidden"], fitting)
    with torch.no_grad():
        score = classifier(views.get(model.test, "state")).numpy()
    shares = settings["fractions"]
    standing = standings(score, loss, divergences(model.test), shares)
    of_model |= {f"learned.{share}": standing[f"nll.{share}"] for share in shares}
    of_model |= {f"attained.{share}": standing[f"attained.{share}"] for share in shares}
    trained_for = "input" if arm.startswith("published") else "output"
    other = {"base": "input", "published": "output"}.get(arm)
    ratio = settings["exit_ratio"]
    by_arm = {arm: of_model | routed(model, trained_for, ratio)}
    if other is not None:
        by_arm[f"{arm}, exited state {other}"] = of_model | routed(model, other, ratio)
    return by_arm


def first_exit_nll(lm: BlockwiseLM, data: Artifact) -> float:
    """Mean NLL of exit 0 in nats on the held-back windows of training documents."""
    windows = trained_and_held_back(data)[1]
    readout, total, count = Readout(lm.readout_matrix(0)), 0.0, 0
    with torch.no_grad():
        for indices in torch.arange(len(windows)).split(BATCH):
            tokens, targets = windows.batch(indices)
            states = lm.run_block(0, lm.embed(tokens)).flatten(0, 1)
            loss, *_ = predictions(lm.readout_input(0, states), readout, targets.flatten())
            total += loss.double().sum().item()
            count += targets.numel()
    return total / count


def routed(model: SmallModel, exited_state: str, exit_ratio: float) -> dict[str, float]:
    """Executed on the test split: a token leaves at exit 0 where max softmax reaches its calibration
    quantile."""
    lm, windows, loss = model.load(exited_state), model.windows("test"), losses(model.test)
    threshold = float(np.quantile(model.calibration.column("max_prob_0"), 1 - exit_ratio))
    policy, everything = ConfidencePolicy(lm, None, threshold), torch.arange(len(windows))
    run = run_split(Executor(lm), windows, everything, batch_size=BATCH, policy=policy, name="routing")
    share = float((run.exit == 0).mean())
    return {
        "routed": float(run.loss.mean(dtype=np.float64)),
        "share": share,
        "random": share * float(loss[0].mean()) + (1 - share) * float(loss[-1].mean()),
    }


def differences(values: Mapping[str, float]) -> dict[str, float]:
    """What each switch does to the routed NLL; the steps from training PPL to final PPL; block-wise against
    the others.

    In nats, of one random seed, as far as the arms are there that it takes.
    """
    arms = {key.partition(":")[0] for key in values}
    learned = dict.fromkeys(key.partition(":")[2] for key in values if ":learned." in key)
    out = {
        f"from {start}:{arm}:{key}": values[f"{arm}:{key}"] - values[f"{start}:{key}"]
        for start, others in (("base", FROM_BASE), ("published", FROM_PUBLISHED))
        for arm in others
        if {start, arm} <= arms
        for key in ("routed", "full", *learned)
    }
    if {"published", FROZEN_HEAD} <= arms:
        # the same initial weights, so the same block 0, and its head as it was when that was judged
        before, same_documents = (
            values[f"{FROZEN_HEAD}:exit_0"],
            values[f"{FROZEN_HEAD}:exit_0_same_documents"],
        )
        out["gap:published"] = values["published:routed"] - same_documents
        out["gap:evaluation set"] = before - same_documents
        out["gap:head moved by block 1"] = values["published:exit_0"] - before
        out["gap:block 1 and routing"] = values["published:routed"] - values["published:exit_0"]
    if "base" in arms:
        out["gap:base"] = values["base:routed"] - values["base:exit_0_same_documents"]
    for other in ("joint", "final"):
        if {"block-wise", other} <= arms:
            for key in ("full", *learned):
                out[f"block-wise minus {other}:{key}"] = (
                    values[f"block-wise:{key}"] - values[f"{other}:{key}"]
                )
    return out


def report(
    values: Mapping[str, Mapping[str, float]], shares: Sequence[float]
) -> tuple[dict[str, Any], list[str]]:
    """Tables for the findings, and the sentences they support, from intervals over random seeds."""
    arms = [*ARMS, "base, exited state input", "published, exited state output"]
    interval = "mean and 95 % t interval over random seeds"
    figures = {
        "attribution": {
            "title": "Where the report's gap comes from (NLL in nats, positive is worse)",
            "note": f"published configuration; {interval}",
            "columns": ["step", "nats"],
            "rows": [
                [
                    "exit 0 on unseen windows of training documents -> routed on unseen documents (the gap)",
                    _cell(values["gap:published"]),
                ],
                [
                    "of it: unseen documents instead of unseen windows (head as block 0 left it)",
                    _cell(values["gap:evaluation set"]),
                ],
                [
                    "of it: the shared head that block 1 moved, at exit 0",
                    _cell(values["gap:head moved by block 1"]),
                ],
                ["of it: block 1 and routing against exit 0 alone", _cell(values["gap:block 1 and routing"])],
                ["the same gap in the corrected configuration", _cell(values["gap:base"])],
            ],
        },
        "switches from the corrected side": {
            "title": "One of the report's choices added to the corrected configuration: change of NLL (nats, "
            "positive is worse)",
            "note": "routed: at the report's exit ratio by max softmax, executed; learned: by a gain "
            f"classifier, cached; test documents, paired by random seed, {interval}",
            **_switches(values, "base", FROM_BASE, shares),
        },
        "switches from the published side": {
            "title": "One of the report's choices removed from the published configuration: change of NLL "
            "(nats, negative is better)",
            "note": f"the same measures; {interval}",
            **_switches(values, "published", FROM_PUBLISHED, shares),
        },
        "arms": {
            "title": "Every arm on test documents (NLL in nats)",
            "note": "routed: by max softmax at the report's exit ratio, executed; learned: a gain "
            "classifier, cached; attained: its share of the way from random exits to the divergence oracle, "
            f"which is what a signal can reach without knowing the next token; {interval}",
            "columns": [
                "arm",
                "exit 0",
                "full depth",
                "routed",
                "random",
                *(f"learned, {share:.0%}" for share in shares),
                *(f"attained, {share:.0%}" for share in shares),
            ],
            "rows": [
                [
                    arm,
                    *(_cell(values[f"{arm}:{key}"]) for key in ("exit_0", "full", "routed", "random")),
                    *(_cell(values[f"{arm}:learned.{share}"]) for share in shares),
                    *(_cell(values[f"{arm}:attained.{share}"]) for share in shares),
                ]
                for arm in arms
            ],
        },
        "block-wise against the others": {
            "title": "Block-wise minus joint and final training at equal training FLOPs and equal inference "
            "FLOPs (NLL in nats)",
            "note": "negative: block-wise is better; shares of tokens leaving by a gain classifier; "
            f"{interval}",
            "columns": ["against", "full depth", *(f"{share:.0%} leave" for share in shares)],
            "rows": [
                [
                    other,
                    _cell(values[f"block-wise minus {other}:full"]),
                    *(_cell(values[f"block-wise minus {other}:learned.{share}"]) for share in shares),
                ]
                for other in ("joint", "final")
            ],
        },
    }
    gap = values["gap:published"]
    parts = {
        name: values[f"gap:{name}"]
        for name in ("evaluation set", "head moved by block 1", "block 1 and routing")
    }
    sentences = [
        f"With the report's configuration the final NLL lies {_words(gap)} nats above that of training. The "
        f"evaluation set accounts for {_words(parts['evaluation set'])} of it, the head that block 1 moves "
        f"for {_words(parts['head moved by block 1'])} at exit 0, block 1 and routing for "
        f"{_words(parts['block 1 and routing'])}.",
        "Against joint training at equal training FLOPs, block-wise training is "
        f"{_judged(values['block-wise minus joint:full'])} at full depth and "
        f"{_judged(values[f'block-wise minus joint:learned.{shares[1]}'])} where {shares[1]:.0%} of the "
        "tokens leave; against training the last exit only, "
        f"{_judged(values['block-wise minus final:full'])} at full depth and "
        f"{_judged(values[f'block-wise minus final:learned.{shares[1]}'])} there.",
    ]
    return figures, sentences


def _switches(
    values: Mapping[str, Mapping[str, float]], start: str, arms: Mapping[str, str], shares: Sequence[float]
) -> dict[str, Any]:
    """Columns and rows of a table of switches, turned from ``start``."""
    keys = {
        "routed": "routed",
        "full depth": "full",
        **{f"learned, {share:.0%}": f"learned.{share}" for share in shares},
    }
    return {
        "columns": ["switch", *keys],
        "rows": [
            [name, *(_cell(values[f"from {start}:{arm}:{key}"]) for key in keys.values())]
            for arm, name in arms.items()
        ],
    }


def _judged(value: Mapping[str, float]) -> str:
    """Better, worse or not told apart, with the difference in nats."""
    verdict = "better" if value["high"] < 0 else "worse" if value["low"] > 0 else "not told apart"
    return f"{verdict} ({_words(value)} nats)"


def _cell(value: Mapping[str, float]) -> list[float]:
    return [value["value"], value["low"], value["high"]]


def _words(value: Mapping[str, float]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
