"""Console tables of what the analyses measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from rich.markup import escape
from rich.table import Table

from offramp.analysis.learned import LearnedSeparation
from offramp.analysis.rank_pass import SIGNALS
from offramp.results.shape import Interval
from offramp.vocabulary import BENEFITS, LEARNED

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
KEPT = 0.9
"""The correlation with the exact one from which a confidence of low rank counts as kept."""
FITTED_HERE = f"{LEARNED} was fitted on some of these tokens, and so looks better than it is"


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


def separation_sentence(result: dict[str, Any], learned_saw_tokens: bool = False) -> str:
    """What the table says: which signal tells hard tokens best, and which those that depth helps."""
    signals = result["signals"]
    gap, gap_of = _best(signals, "loss_gap")
    of_loss = result["controls"]["oracle"]["loss_gap"]
    parts = [
        f"Of all signals {gap} tells easy from hard tokens best: {_with_interval(gap_of, 'loss_gap')} nats "
        f"apart, the loss itself {of_loss:.2f}"
    ]
    if result["deep_helps"] is not None:
        depth, depth_of = _best(signals, "auroc")
        whom = "also" if depth == gap else depth
        parts.append(
            f"which tokens depth helps, {whom} tells best: AUROC {_with_interval(depth_of, 'auroc')}, "
            "chance 0.50"
        )
    if LEARNED not in signals:
        parts.append("no classifier was trained for this exit of this model")
    elif learned_saw_tokens:
        parts.append(FITTED_HERE)
    return "; ".join(parts) + "."


def _best(signals: dict[str, dict[str, Any]], measure: str) -> tuple[str, dict[str, Any]]:
    """The signal with the highest value of a measure, which is None where a signal does not vary."""
    return max(signals.items(), key=lambda item: -inf if item[1][measure] is None else item[1][measure])


def _with_interval(values: dict[str, Any], measure: str) -> str:
    value, bounds = values[measure], values["intervals"].get(measure)
    if value is None:
        return "undefined"
    return f"{value:.2f}" + (" [{:.2f}, {:.2f}]".format(*bounds) if bounds else "")


def low_rank_table(rows: Sequence[dict[str, Any]], learned: LearnedSeparation | None = None) -> Table:
    """The rows of ``analysis.low_rank.rank_sweep``, a block of them per variant, and the learned signal."""
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
        caption="gap, oracle share: of max_minus_mean; argmax: agreement with the exact one; learned: the "
        "exit's classifier",
    )
    for place, row in enumerate(rows):
        last = place + 1 == len(rows) or rows[place + 1]["variant"] != row["variant"]
        out.add_row(
            row["variant"], str(row["rank"]), *(f"{row[key]:.3f}" for key in shown.values()), end_section=last
        )
    if learned:
        cells = {"gap": learned.gap, "oracle share": learned.oracle_share, "FLOPs": learned.flop_share}
        out.add_row(LEARNED, "-", *(f"{cells[name]:.3f}" if name in cells else "-" for name in shown))
    return out


def low_rank_sentence(rows: Sequence[dict[str, Any]], learned: LearnedSeparation | None) -> str:
    """What the table says: the rank that confidence needs, and what the learned signal does without one."""
    enough = [row for row in rows if row["softmax_corr"] >= KEPT and row["flop_share"] < 1]
    close = f"a softmax confidence that correlates with the exact one at {KEPT} or more"
    if enough:
        first = min(enough, key=lambda row: (row["rank"], -row["softmax_corr"]))
        parts = [
            f"Rank {first['rank']} ({first['variant']}) is the lowest measured with {close}, for "
            f"{first['flop_share']:.0%} of the readout's FLOPs"
        ]
    else:
        parts = [f"No rank measured that is cheaper than the readout has {close}"]
    if learned is None:
        parts.append("no classifier was trained for this exit of this model")
        return "; ".join(parts) + "."
    best = max(rows, key=lambda row: row["max_minus_mean_oracle_share"])
    about = ", which is what going on would buy, not how hard a token is" if learned.label in BENEFITS else ""
    parts.append(
        f"of the separation that knowing the losses gives, the best (rank {best['rank']}, {best['variant']}) "
        f"has {best['max_minus_mean_oracle_share']:.0%}, and the learned signal {learned.oracle_share:.0%} "
        f"for {learned.flop_share:.0%} of the readout's FLOPs: it was trained on {learned.label}{about}"
    )
    if learned.fitted_here:
        parts.append(FITTED_HERE)
    return "; ".join(parts) + "."


def _cell(value: float | None, bounds: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f"\n{bounds[0]:.3f} {bounds[1]:.3f}" if bounds else "")
