"""Console tables of what the analyses measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from offramp.analysis.advice import percent
from offramp.analysis.oracle import BOUNDS
from offramp.analysis.rank_pass import SIGNALS
from offramp.results.shape import Interval
from offramp.results.suitability import Suitability
from offramp.vocabulary import LOOKS_AT

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


def suitability_table(result: Suitability) -> Table:
    """What ``analysis.suitability`` measured, for a person to read; intervals below the values."""
    kinds, timing = list(result.oracle), result.timing
    bounds = "; ".join(
        " / ".join(percent(getattr(result.oracle[kind], name).flop_saving) for kind in kinds) + f" {kept}"
        for name, kept in BOUNDS.items()
    )
    out = Table(
        title=f"{result.model}: {result.tokens:,} tokens in {result.sequences:,} windows of {result.window}",
        caption=f"FLOPs saved by an oracle ({' / '.join(kinds)}): {bounds}.\n"
        "Raw: the last readout on the earlier state; tuned: the exit's own. Below: 95 % over windows.\n"
        "Break-even: share of tokens that must leave before asking pays, in FLOPs / by the clock, for a "
        "signal of the state and one of the readout;\n"
        f"{timing.rounds} batches of {timing.tokens} tokens in turn on {timing.machine}.",
    )
    headings = (
        "exit",
        "after layer",
        "FLOPs saved",
        *(f"{name} {kind}" for name in ("agreement", "NLL") for kind in kinds),
        "break-even state",
        "break-even readout",
    )
    for heading in headings:
        out.add_column(heading, justify="right")
    for row in result.rows:
        readouts = [row.readouts[kind] for kind in kinds]
        cells = [_cell(readout.agreement, readout.agreement_interval) for readout in readouts]
        cells += [_cell(readout.nll, readout.nll_interval) for readout in readouts]
        if row.break_even:
            cells += [f"{_share(row.flops(kind))} / {_share(row.seconds(kind))}" for kind in LOOKS_AT]
        out.add_row(str(row.exit), str(row.layers), percent(row.flop_saving), *cells)
    return out


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


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)


def _cell(value: float | None, bounds: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f"\n{bounds[0]:.3f} {bounds[1]:.3f}" if bounds else "")
