"""Console tables of what the analyses measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from offramp.analysis.rank_pass import SIGNALS
from offramp.results.shape import Interval

MEASURES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "loss_gap": "loss gap",
    "oracle_share": "oracle share",
    "cohens_d": "Cohen's d",
    "auroc": "AUROC depth",
    "aurc": "AURC",
}
"""Columns of the separation table: a measure, and how it is headed."""


def separation_table(result: dict[str, Any]) -> Table:
    """What ``analysis.separation`` measured: a row per score, intervals below the values."""
    loss = result["loss"]
    shape = "two modes" if loss["bimodal"] else "no two modes shown"
    out = Table(
        title=f"Exit {result['exit']}: {result['tokens']:,} tokens of {result['sequences']:,} sequences; "
        f"loss {loss['mean']:.3f} nats, std {loss['std']:.3f}; {shape} (dip {loss['dip']:.4f}, p "
        f"{loss['dip_p']:.3f}, BIC gain of a second Gaussian {loss['bic_gain']:.0f})",
        caption=f"Easy: the surest {result['easy_fraction']:.0%}. Cohen's d of one Gaussian split there: "
        f"{result['controls']['oracle']['gaussian_d']:.2f}. "
        "Oracle, correct_prob: know the loss. Below: 95 % over sequences.",
    )
    out.add_column("score")
    for heading in (*MEASURES.values(), "from state"):
        out.add_column(heading, justify="right")
    for kind in ("controls", "signals"):
        for name, values in result[kind].items():
            cells = [_cell(values[key], values["intervals"].get(key)) for key in MEASURES]
            out.add_row(
                escape(name),
                *cells,
                _cell(values.get("predictability"), None),
                style="dim" if kind == "controls" else "",
            )
        out.add_section()
    return out


def low_rank_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of ``analysis.low_rank.rank_sweep``, a block of them per variant."""
    shown = {
        "coverage": "coverage",
        "logits r": "logit_corr",
        **{f"{signal} r": f"{signal}_corr" for signal in SIGNALS},
        "gap": "max_minus_mean_gap",
        "oracle share": "max_minus_mean_oracle_share",
        "argmax": "agreement",
        "FLOPs": "flop_share",
    }
    out = Table(
        "variant",
        "rank",
        *shown,
        caption="gap, oracle share: of max_minus_mean; argmax: agreement with the exact one",
    )
    for place, row in enumerate(rows):
        last = place + 1 == len(rows) or rows[place + 1]["variant"] != row["variant"]
        out.add_row(
            row["variant"], str(row["rank"]), *(f"{row[key]:.3f}" for key in shown.values()), end_section=last
        )
    return out


def _cell(value: float | None, bounds: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f"\n{bounds[0]:.3f} {bounds[1]:.3f}" if bounds else "")
