"""Seed 004, low-rank readouts: is a cheaper readout good enough to decide by, and is it low rank or the SVD of W that fails?

python -m studies.low_rank_readout.study --corpus sotu|wikitext [--protocol published|corrected|both]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from offramp.artifacts.artifact import open_artifact
from offramp.states.store import States
from studies.common import word_states as seed004
from studies.common.results import study_params
from studies.common.word_states import Measured, Rows, Values

STUDY = "low_rank_readout"

SETTINGS: dict[str, Any] = study_params(STUDY)
"""Section ``low_rank_readout`` of pipeline/studies/params.yaml."""

FLAWS = [
    "J5 everything is computed on the split that stopped training early; one model, one seed; the constant component of the "
    "logits is not removed",
    "I1 the embedding is never trained",
    "the SVD of W minimises |W - W_r|, not the error of the logits",
]

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
        prefix = "" if row["variant"] == "plain" else f"{row['variant']}."
        out |= {
            f"{prefix}{name}.{row['rank']}": None if math.isnan(row[name]) else row[name] for name in MEASURES
        }
        out[f"flop_share.{row['rank']}"] = row["flop_share"]
    return out


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """Two long tables: correlation of every signal with its exact value, and the loss gap it gives, by variant and rank."""

    def long(suffix: str, named: str) -> Rows:
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


def published(folder: Path, settings: Mapping[str, Any] = SETTINGS) -> Measured:
    """The seed's procedure on evenly spaced validation tokens: the plain SVD, fitted to nothing but W.

    Correlation and error of the logits are means over the first chunks of consecutive tokens, as in the seed. The better
    approximations of the same model, which the seed did not have, are fitted on the first half of the tokens and
    measured on the second.
    """
    states = States(open_artifact(folder / "states", "states", verify=False))
    matrix, inputs, targets = readout_inputs(states, 0, settings["tokens"])
    rows = rank_sweep(matrix, inputs[:2], inputs, targets, settings["ranks"], ["plain"])
    chunks = settings["logit_chunks"]
    first = states.hidden(0, np.arange(states.num_tokens) < chunks["count"] * chunks["tokens"])
    plain = approximate(matrix, first, ["plain"])["plain"]
    fidelity = [
        logit_fidelity(matrix, plain, part, settings["ranks"]) for part in first.split(chunks["tokens"])
    ]
    for row, (corr, mse) in zip(rows, np.mean(fidelity, axis=0).tolist(), strict=True):
        row |= {"logit_corr": corr, "logit_mse": mse}
    _, inputs, targets = readout_inputs(states, 0, 2 * settings["tokens"])
    half = len(inputs) // 2
    rows += rank_sweep(matrix, inputs[:half], inputs[half:], targets[half:], settings["ranks"], VARIANTS[1:])
    return values_of(rows), figures_of(rows)


def corrected(folder: Path, seed: int, settings: Mapping[str, Any] = SETTINGS) -> Measured:
    """Every variant, its mean and covariance from calibration documents, measured on test documents."""
    calibration, test = (
        States(open_artifact(folder / "states" / name, "states", verify=False))
        for name in ("calibration", "test")
    )
    rows = sweep_states(calibration, test, 0, settings["ranks"], settings["tokens"])
    return values_of(rows), figures_of(rows)


def run(
    corpus: str, protocol: str, root: Path, text: dict[str, str], settings: Mapping[str, Any] = SETTINGS
) -> Path:
    """Write metrics/studies/low_rank_readout.<corpus>.json under ``root``."""
    return seed004.run_study(
        STUDY,
        FLAWS,
        settings,
        lambda folder: published(folder, settings),
        lambda folder, seed: corrected(folder, seed, settings),
        corpus,
        protocol,
        root,
        text,
    )


if __name__ == "__main__":
    seed004.study_main(run, STUDY)
