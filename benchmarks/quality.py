"""Quality against compute of models that the pipeline trains.

For every signal the benchmark measures perplexity, agreement, bits per byte, FLOPs and seconds, and writes
metrics/plots/pareto.csv. There are three models (``MODELS``): a jointly trained one, which is held to the
bar, and two small ones, alike but for their exits: tuned (trained jointly) and raw (full depth alone is
trained, and its readout reads out the exit, too: the logit lens).

Thresholds, one per exit, are those that ``threshold: budget`` finds on held-out calibration text. The signal
and budget that are held to the bar are chosen by executing them on calibration documents that neither
classifiers nor thresholds were made on (the part ``guarantee``), with a margin for so little text: the
cheapest of a grid on some windows of these, then, for that signal, budgets between it and the next of the
grid on all. All that is reported is measured on test windows.

Exits are asked from the first on; the learned signal is tried from a middle one on (``routing.first_exit``),
too. Beside the signals stands everybody leaving at one exit, which is a shallower model.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import ROOT, Median, Row, seconds
from benchmarks.projects import reproduced
from offramp.artifacts.artifact import open_artifact
from offramp.corpus.token_bytes import bits_per_byte, token_bytes
from offramp.corpus.tokenizer import open_tokenizer
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.models.store import load_model
from offramp.results.benchmarks import ParetoPoint
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.executor import Executor, Policy
from offramp.routing.policies import FixedExit, Scorer, ThresholdPolicy
from offramp.routing.split import run_split, spread_windows
from offramp.routing.thresholds import NOBODY, HeldOut, budget_thresholds
from offramp.states.resampling import GroupSums
from offramp.vocabulary import LEARNED

MODELS: dict[str, dict[str, Any]] = {
    "joint": {
        "pretrain.method": "joint",
        "model.width": 256,
        "model.ffn_width": 1024,
        "model.block_layers": [2, 2, 2, 2, 2, 2],
        "model.key_value_heads": 1,
        "pretrain.exit_weights": [0.05, 0.1, 0.25, 0.25, 0.15, 0.2],
        "pretrain.steps": 500,
        "pretrain.learning_rate": 2.5e-3,
        "pretrain.evaluate_windows": 200,
    },
    "tuned": {"pretrain.method": "joint"},
    "raw": {"pretrain.method": "final", "pretrain.head": "shared"},
}
"""Parameters that differ from those in params.yaml."""
BUDGETS = (0.92, 0.85, 0.8, 0.75, 0.7, 0.6)
"""FLOPs as shares of a full-depth pass; those that a later first exit cannot keep are left out."""
HALVINGS = 3
"""Finer budgets tried between the best of the grid and the next."""
WINDOWS, BATCH, PAIRS = 192, 32, 4
RETIMED = 54
"""Timed batches of the row that is held to the bar, which is measured once more when it has been chosen."""
MOST_RISE = 0.01
"""The largest rise in perplexity, as a share of it.

A choice that keeps it on calibration text and breaks it on test text counts as full depth, 1.0x.
"""
LEVEL, DRAWS = 0.95, 10_000
"""A choice must keep ``MOST_RISE`` on calibration text with that certainty.

The bound is one-sided and comes from resampled documents.
"""


def run() -> Iterator[Row]:
    rows: list[dict[str, Any]] = []
    for model, settings in MODELS.items():
        pareto = Pareto(reproduced(model, settings, "train_exits"))
        measured = [{"model": model, **row} for row in pareto.rows()]
        rows += measured
        static, signals = (
            [row for row in measured if (row["budget"] is None) == fixed] for fixed in (True, False)
        )
        best, fixed = cheapest(signals), cheapest(static)
        speeds = []
        for row in (best, fixed):
            times = pareto.times(row["policy"], RETIMED) if row else [1.0]
            speeds.append(Median.of(1 / time for time in times))
            if row:
                row["wall_saving"] = 1 - statistics.median(times)
        points = [ParetoPoint(**{name: row[name] for name in ParetoPoint.columns()}) for row in rows]
        ParetoPoint.write(ROOT, points)
        met = best is not None and best["ppl_increase"] <= MOST_RISE
        yield Row(
            f"quality_speed_at_1_percent_{model}",
            speeds[0] if met else 1.0,
            "x speed",
            ">= 1.2" if model == "joint" else None,
            f"full depth of the same model ({pareto.words}); of {len(signals)} signals and budgets the one "
            "that saves "
            "most FLOPs on calibration documents of its own at no more than 1 % more perplexity there "
            "(one-sided 95 %); "
            f"on test text: {told(best)}",
            RETIMED if best else 0,
        )
        yield Row(
            f"static_speed_at_1_percent_{model}",
            speeds[1],
            "x speed",
            None,
            f"the same, for everybody leaving at one exit: {told(fixed)}",
            RETIMED if fixed else 0,
        )


class Pareto:
    """A project's model and exit classifiers, and what each policy gains and costs."""

    def __init__(self, root: Path):
        data, lm, classifiers = (
            open_artifact(root / path, kind)
            for path, kind in (("data", "data"), ("models/lm", "lm"), ("models/exits", "exits"))
        )
        self.exits, self.executor = Exits(classifiers), Executor(load_model(lm))
        windows = TokenWindows(data, "test")
        self.window, sizes = windows.window, self.executor.model.config
        self.test = Held(self.executor, windows, spread_windows(len(windows), WINDOWS))
        number, tokens = np.unique(self.exits.held_out(LEARNED, "guarantee")["sequence"], return_counts=True)
        # Windows that two parts share are left out.
        whole = torch.from_numpy(number[tokens == windows.window].astype(np.int64))
        calibration = TokenWindows(data, "calibration")
        self.some, self.all = (
            Held(self.executor, calibration, whole[spread_windows(len(whole), WINDOWS)]),
            Held(self.executor, calibration, whole),
        )
        self.num_bytes = float(token_bytes(open_tokenizer(data), data.meta["kind"])[self.test.target].sum())
        method = (
            lm.params["pretrain.method"]
            if "pretrain.method" in lm.params
            else lm.params["pretrain"]["method"]
        )
        self.words = f"{method}, {'+'.join(map(str, sizes.block_layers))} layers of width {sizes.width}"

    def rows(self) -> list[dict[str, Any]]:
        """Everybody at each exit, every signal at every budget, and finer budgets of the best signal."""
        model = self.executor.model
        rows = [
            self.row(f"everybody at exit {exit}", None, FixedExit(exit), self.some)
            for exit in range(model.config.num_blocks - 1)
        ]
        grid = []
        for signal in self.exits.config["signals"]:
            for first in sorted({0, (model.config.num_blocks - 1) // 2} if signal == LEARNED else {0}):
                grid += [
                    self.row(signal, budget, policy, self.some)
                    for budget in BUDGETS
                    if (policy := self.policy(signal, first, budget))
                ]
        best = cheapest(grid)
        if best is None:
            return rows + grid
        kept, broken = (
            best["budget"],
            max((budget for budget in BUDGETS if budget < best["budget"]), default=0.0),
        )
        for _ in range(HALVINGS):
            budget = (kept + broken) / 2
            policy = self.policy(best["signal"], best["first_exit"], budget)
            if policy is None:
                broken = budget
                continue
            grid.append(self.row(best["signal"], budget, policy, self.all))
            kept, broken = (budget, broken) if keeps(grid[-1]) else (kept, budget)
        return rows + grid

    def policy(self, signal: str, first: int, budget: float) -> ThresholdPolicy | None:
        """None where the exits from ``first`` on cannot keep the budget."""
        model, held_out = self.executor.model, HeldOut(**self.exits.held_out(signal, "select"))
        scorer = Scorer(self.exits, signal, torch.device("cpu"))
        costs = np.array(
            exit_costs(model, self.window, scorer.reads_out, scorer.flops_per_token, first=first)
        )
        if budget <= costs[first]:
            return None
        return ThresholdPolicy(
            model,
            scorer,
            [NOBODY] * first + budget_thresholds(held_out.after(first), costs[first:], budget),
            first,
        )

    def row(self, name: str, budget: float | None, policy: Policy, calibration: Held) -> dict[str, Any]:
        """What ``policy`` gains and costs on test text, and on the calibration windows it is chosen by."""
        measured = self.test.run(policy, f"{name} {budget}")
        chosen_by = calibration.run(policy, f"{name} {budget}, calibration")
        return {
            "signal": name,
            "first_exit": policy.first,
            "budget": budget,
            "policy": policy,
            **measured,
            "bits_per_byte": bits_per_byte(
                float(np.log(measured["ppl"])) * len(self.test.target), self.num_bytes
            ),
            "wall_saving": 1 - statistics.median(self.times(policy, PAIRS)),
            "calibration_windows": len(calibration.chosen),
            **{
                f"calibration_{key}": chosen_by[key]
                for key in ("ppl_increase", "ppl_increase_high", "flop_saving")
            },
        }

    def times(self, policy: Policy, pairs: int) -> list[float]:
        """Routed / full-depth seconds of ``pairs`` test batches run both ways in turn."""
        parts = self.test.chosen.split(BATCH)
        batches = [self.test.windows.batch(parts[number % len(parts)]) for number in range(pairs)]
        ratios = []
        for number, batch in enumerate(batches):
            arms = partial(self.executor.run, *batch, None), partial(self.executor.run, *batch, policy)
            order = (0, 1) if number % 2 else (1, 0)
            times = {place: seconds(arms[place]) for place in order}
            ratios.append(times[1] / times[0])
        return ratios


class Held:
    """Windows of a split, and what full depth makes of them."""

    def __init__(self, executor: Executor, windows: TokenWindows, chosen: Tensor):
        """``chosen`` (N,) are the numbers of the windows."""
        self.executor, self.windows, self.chosen = executor, windows, chosen
        self.documents = windows.documents(chosen)[:, 0]  # (N,) of the windows' first tokens
        self.target = torch.cat(
            [windows.batch(part)[1].flatten() for part in self.chosen.split(BATCH)]
        ).numpy()
        self.full = run_split(executor, windows, self.chosen, batch_size=BATCH, name="full depth")

    def run(self, policy: Policy, name: str) -> dict[str, float]:
        """Quality and FLOPs of the windows under ``policy``; ``name`` labels the progress bar."""
        routed = run_split(
            self.executor, self.windows, self.chosen, policy=policy, batch_size=BATCH, name=name
        )
        model = self.executor.model
        nll, reference = (float(part.loss.mean(dtype=np.float64)) for part in (routed, self.full))
        rises = (routed.loss - self.full.loss).reshape(len(self.chosen), -1).mean(1, dtype=np.float64)
        high = np.quantile(GroupSums(self.documents, {"rise": rises}).resample(DRAWS, 0)["rise"], LEVEL)
        flops = executed_flops(model, routed.work, policy.flops_per_token)
        return {
            "shallow_ratio": float((routed.exit < model.config.num_blocks - 1).mean()),
            "ppl": float(np.exp(nll)),
            "ppl_increase": float(np.exp(nll - reference) - 1),
            "ppl_increase_high": float(np.exp(high) - 1),
            "agreement": float((routed.argmax == self.full.argmax).mean()),
            "flop_saving": 1 - flops / full_depth_flops(model, len(self.target), self.windows.window),
        }


def keeps(row: dict[str, Any]) -> bool:
    """Whether a choice keeps ``MOST_RISE`` on calibration text, with the certainty ``LEVEL``."""
    return row["calibration_ppl_increase_high"] <= MOST_RISE


def cheapest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that saves most FLOPs on calibration text, of those that lose little there, if any does."""
    return max(filter(keeps, rows), key=lambda row: row["calibration_flop_saving"], default=None)


def told(row: dict[str, Any] | None) -> str:
    """A choice and what it gains and costs on test text, in words."""
    if row is None:
        return "none loses that little"
    budget = "" if row["budget"] is None else f" within {row['budget']:.1%} of the FLOPs"
    later = f" from exit {row['first_exit']} on" if row["first_exit"] and row["budget"] else ""
    return (
        f"{row['signal']}{later}{budget}, {row['shallow_ratio']:.0%} leave, {row['flop_saving']:.0%} of the "
        "FLOPs "
        f"and {row['wall_saving']:.0%} of the time saved, perplexity {row['ppl_increase']:+.2%}"
    )
