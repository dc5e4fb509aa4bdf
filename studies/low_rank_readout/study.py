"""Is a cheaper readout good enough to decide by, and is it low rank or the SVD of W that fails? Report
loss-prediction.

Published: the report's procedure with its flaws (study.yaml) on validation words, the plain SVD of the
readout matrix W. Corrected: approximations that know how states are distributed (their mean and covariance
from calibration documents of word-level models), measured on test documents.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.analysis.low_rank import (
    VARIANTS,
    approximate,
    logit_fidelity,
    rank_sweep,
    readout_inputs,
    sweep_states,
)
from offramp.analysis.rank_pass import SIGNALS
from offramp.states.statistics import Readout, predictions
from offramp.states.store import States
from studies.common.first_block import first_block
from studies.common.study import Job, Outcome
from studies.common.tables import Table, Values, mean_tables, of_protocol
from studies.common.token_scores import median_split
from studies.common.word_models import word_models

ARMS = VARIANTS
PLAIN = "plain"
"""The approximation of the report."""

PASS_ROWS = 256
"""Tokens whose logits are computed at a time, as one would without any care."""
ROUNDS = 5
"""Timed passes of each readout."""

MEASURES = (
    "coverage",
    "logit_corr",
    "logit_mse",
    *(f"{signal}_corr" for signal in SIGNALS),
    "softmax_gap",
    "softmax_oracle_share",
    "max_minus_mean_gap",
    "max_minus_mean_oracle_share",
    "agreement",
    "loss",
)
"""Of every variant at every rank; see offramp.analysis.low_rank.rank_sweep."""


def values_of(rows: Sequence[Mapping[str, Any]]) -> Values:
    """Rows of the sweep as ``<measure>.<rank>``, after the variant's name and a dot unless it is plain.

    ``flop_share.<rank>`` and its reciprocal ``flop_ratio.<rank>`` are the same for all. None for what is not
    defined.
    """
    out: Values = {}
    for row in rows:
        prefix = "" if row["variant"] == PLAIN else f"{row['variant']}."
        out |= {
            f"{prefix}{name}.{row['rank']}": None if math.isnan(row[name]) else row[name] for name in MEASURES
        }
        out[f"flop_share.{row['rank']}"] = row["flop_share"]
        out[f"flop_ratio.{row['rank']}"] = 1 / row["flop_share"]
    return out


@torch.no_grad()
def pass_values(matrix: Tensor, inputs: Tensor, targets: Tensor, ranks: Sequence[int]) -> Values:
    """What the report measured of its plain decomposition in a pass per rank, by key.

    ``softmax_mse.<rank>``: mean squared error of the largest probability. ``max_minus_mean_easy`` and
    ``_hard.<rank>``: mean exact losses in nats of the half that max minus mean logit is surer of, and of the
    rest. ``seconds.<rank>`` of a pass over the logits of all tokens, and ``seconds_ratio.<rank>``: the
    seconds of a pass with the readout itself over them. Both are medians of ``ROUNDS`` rounds, in each of
    which the readout itself and every rank have their turn, after one that is not timed. matrix (V, D),
    inputs (N, D), targets (N,).
    """
    plain = approximate(matrix, inputs[:2], [PLAIN])[PLAIN]
    loss, _, exact = (values.double().numpy() for values in predictions(inputs, Readout(matrix), targets))
    factors = {
        rank: ((matrix.double() @ plain.left[:, :rank]).float(), plain.right[:, :rank].float())
        for rank in ranks
    }
    out: Values = {}
    for rank, (left, right) in factors.items():  # each is warm for its timing then
        largest, spread = _scores(left, inputs, right)
        sides = median_split(spread, loss)
        out |= {
            f"softmax_mse.{rank}": float(((largest - exact) ** 2).mean()),
            f"max_minus_mean_easy.{rank}": sides["easy"],
            f"max_minus_mean_hard.{rank}": sides["hard"],
        }
    _scores(matrix, inputs)
    rounds = [
        (
            _seconds(matrix, inputs),
            {rank: _seconds(left, inputs, right) for rank, (left, right) in factors.items()},
        )
        for _ in range(ROUNDS)
    ]
    for rank in ranks:
        out |= {
            f"seconds.{rank}": statistics.median(low[rank] for _, low in rounds),
            f"seconds_ratio.{rank}": statistics.median(full / low[rank] for full, low in rounds),
        }
    return out


def _scores(matrix: Tensor, inputs: Tensor, right: Tensor | None = None) -> np.ndarray:
    """Largest probability and max minus mean of the logits of inputs (N, D), (2, N).

    The readout is a matrix (V, D), or (V, R) for inputs that ``right`` (D, R) projects first.
    """
    parts = []
    for some in inputs.split(PASS_ROWS):
        logits = (some if right is None else some @ right) @ matrix.T
        parts.append(torch.stack([logits.softmax(1).amax(1), logits.amax(1) - logits.mean(1)]))
    return torch.cat(parts, 1).double().numpy()


def _seconds(matrix: Tensor, inputs: Tensor, right: Tensor | None = None) -> float:
    """Seconds that ``_scores`` takes."""
    began = time.perf_counter()
    _scores(matrix, inputs, right)
    return time.perf_counter() - began


def tables_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """Two long tables: correlation of every signal with its exact value, and the loss gap it gives, by
    variant and rank."""

    def long(suffix: str, named: str) -> Table:
        return [
            {
                "variant": row["variant"],
                "signal": key.removesuffix(suffix),
                "rank": row["rank"],
                named: row[key],
            }
            for row in rows
            for key in MEASURES
            if key.endswith(suffix) and not math.isnan(row[key])
        ]

    return {"correlation": long("_corr", "correlation"), "loss_gap": long("_gap", "gap")}


def published(job: Job) -> Outcome:
    """The report's procedure on evenly spaced validation words."""
    block = first_block(job.text, job.cache, job.shared["first_block"], job.seeds[0])
    ranks, tokens = _extent(job)
    rows = published_sweep(block.states, job.settings, job.arms)
    values = values_of(rows)
    if PLAIN in job.arms:
        values |= pass_values(*readout_inputs(block.states, 0, tokens), ranks)
    return Outcome([values], of_protocol(tables_of(rows), "published"))


def corrected(job: Job) -> Outcome:
    """Every variant, its mean and covariance from calibration documents, measured on test documents."""
    ranks, tokens = _extent(job)
    models = word_models(job.text, job.cache, job.shared["word_models"], job.seeds)
    sweeps = [sweep_states(model.calibration, model.test, 0, ranks, tokens, job.arms) for model in models]
    tables = mean_tables([tables_of(rows) for rows in sweeps])
    values = [values_of(rows) for rows in sweeps]
    if PLAIN in job.arms:
        for of_seed, model in zip(values, models, strict=True):
            of_seed |= pass_values(*readout_inputs(model.test, 0, tokens), ranks)
    return Outcome(values, of_protocol(tables, "corrected"))


def _extent(job: Job) -> tuple[list[int], int]:
    """The ranks, and how many tokens they are measured on."""
    return job.settings["ranks"], job.settings["tokens"]


def published_sweep(
    states: States, settings: Mapping[str, Any], variants: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of ``rank_sweep`` for the variants: the plain SVD is fitted to nothing but W.

    Its correlation and error of the logits are means over the first chunks of consecutive tokens, as in the
    report. The better approximations of the same model, which the report did not have, are fitted on the
    first half of the tokens and measured on the second.
    """
    rows: list[dict[str, Any]] = []
    if PLAIN in variants:
        matrix, inputs, targets = readout_inputs(states, 0, settings["tokens"])
        rows = rank_sweep(matrix, inputs[:2], inputs, targets, settings["ranks"], [PLAIN])
        chunks = settings["logit_chunks"]
        first = states.hidden(0, np.arange(states.num_tokens) < chunks["count"] * chunks["tokens"])
        plain = approximate(matrix, first, [PLAIN])[PLAIN]
        fidelity = [
            logit_fidelity(matrix, plain, part, settings["ranks"]) for part in first.split(chunks["tokens"])
        ]
        for row, (corr, mse) in zip(rows, np.mean(fidelity, axis=0).tolist(), strict=True):
            row |= {"logit_corr": corr, "logit_mse": mse}
    better = [name for name in variants if name != PLAIN]
    if better:
        matrix, inputs, targets = readout_inputs(states, 0, 2 * settings["tokens"])
        half = len(inputs) // 2
        rows += rank_sweep(matrix, inputs[:half], inputs[half:], targets[half:], settings["ranks"], better)
    return rows
