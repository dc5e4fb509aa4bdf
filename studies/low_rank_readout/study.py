"""Is a cheaper readout good enough to decide by, and is it low rank or the SVD of W that fails? Report
loss-prediction.

Published: the report's procedure with its flaws (study.yaml) on validation words, the plain SVD of the
readout matrix W. Corrected: approximations that know how states are distributed (their mean and covariance
from calibration documents of word-level models), measured on test documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.analysis.low_rank import (
    VARIANTS,
    approximate,
    logit_fidelity,
    rank_sweep,
    readout_inputs,
    sweep_states,
)
from offramp.analysis.rank_pass import SIGNALS
from offramp.states.store import States
from studies.common.first_block import first_block
from studies.common.study import Job, Outcome
from studies.common.tables import Table, Values, mean_tables, of_protocol
from studies.common.word_models import word_models

ARMS = VARIANTS
PLAIN = "plain"
"""The approximation of the report."""

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

    ``flop_share.<rank>`` is the same for all. None for what is not defined.
    """
    out: Values = {}
    for row in rows:
        prefix = "" if row["variant"] == PLAIN else f"{row['variant']}."
        out |= {
            f"{prefix}{name}.{row['rank']}": None if math.isnan(row[name]) else row[name] for name in MEASURES
        }
        out[f"flop_share.{row['rank']}"] = row["flop_share"]
    return out


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
    rows = published_sweep(block.states, job.settings, job.arms)
    return Outcome([values_of(rows)], of_protocol(tables_of(rows), "published"))


def corrected(job: Job) -> Outcome:
    """Every variant, its mean and covariance from calibration documents, measured on test documents."""
    ranks, tokens = job.settings["ranks"], job.settings["tokens"]
    models = word_models(job.text, job.cache, job.shared["word_models"], job.seeds)
    sweeps = [sweep_states(model.calibration, model.test, 0, ranks, tokens, job.arms) for model in models]
    tables = mean_tables([tables_of(rows) for rows in sweeps])
    return Outcome([values_of(rows) for rows in sweeps], of_protocol(tables, "corrected"))


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
