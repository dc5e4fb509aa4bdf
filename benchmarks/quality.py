"""Quality against compute of models that the pipeline trains.

For every signal the benchmark measures perplexity, agreement, bits per byte and FLOPs, and writes
metrics/plots/pareto.csv. There are three models (``MODELS``): a jointly trained one, which is held to the
bar, and two small ones, alike but for their exits: tuned (trained jointly) and raw (full depth alone is
trained, and its readout reads out the exit, too: the logit lens).

Thresholds, one per exit, are those that ``threshold: budget`` finds on held-out calibration text. The signal
and budget that are held to the bar are chosen by executing them on calibration documents that neither
classifiers nor thresholds were made on (the part ``guarantee``), with a margin for so little text: the
cheapest of a grid on some windows of these, then, for that signal, budgets between it and the next of the
grid on all. What was chosen is then run on all test windows, every batch at full depth and routed in turn:
from that come its seconds and its rise in perplexity.

Exits are asked from the first on; the learned signal is tried from a middle one on (``routing.first_exit``),
too. Beside the signals stands everybody leaving at one exit, which is a shallower model; it is chosen on all
of these calibration windows, as the signal's last budgets are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.both_ways import BothWays, both_ways
from benchmarks.measure import ROOT, Estimate, Row
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

SMALL = {"pretrain.precision": "bf16", "pretrain.steps": 300, "exits.patience": 1}
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
        "pretrain.evaluate_windows": 100,
        "pretrain.precision": "bf16",
        "exits.patience": 1,
    },
    "tuned": {**SMALL, "pretrain.method": "joint"},
    "raw": {**SMALL, "pretrain.method": "final", "pretrain.head": "shared"},
}
"""Parameters that differ from those in params.yaml."""
HELD = "joint"
"""The model that is held to the bar."""
BUDGETS = (0.92, 0.85, 0.8, 0.75, 0.7)
"""FLOPs as shares of a full-depth pass that the learned signal is tried at where a model is held to the bar.

Those that a later first exit cannot keep are left out.
"""
FEW_BUDGETS = (0.92, 0.8, 0.7)
"""The same for the other signals, and for all of the other models."""
HALVINGS = 2
"""Finer budgets tried between the best of the grid and the next."""
WINDOWS, BATCH = 96, 32
"""Windows that the grid is run on, of test text and of calibration text, and windows in a batch."""
MOST_RISE = 0.01
"""The largest rise in perplexity, as a share of it.

A choice that keeps it on calibration text and breaks it on test text counts as full depth, 1.0x; whether it
keeps it for certain is a row of its own.
"""
LEVEL, DRAWS = 0.95, 10_000
"""A choice must keep ``MOST_RISE`` on calibration text with that certainty.

The bound is one-sided and comes from resampled documents.
"""


def run() -> Iterator[Row]:
    measured: list[dict[str, Any]] = []
    for model, settings in MODELS.items():
        pareto = Pareto(reproduced(model, settings, "train_exits"), BUDGETS if model == HELD else FEW_BUDGETS)
        rows = [{"model": model, **row} for row in pareto.rows()]
        measured += rows
        ParetoPoint.write(
            ROOT, [ParetoPoint(**{name: row[name] for name in ParetoPoint.columns()}) for row in measured]
        )
        if model == HELD:
            yield from bar(pareto, rows)


def bar(pareto: Pareto, rows: list[dict[str, Any]]) -> Iterator[Row]:
    """The rows of what was chosen, and of the exit that everybody takes, each run on all test text."""
    signals = [row for row in rows if row["budget"] is not None]
    static = [row for row in rows if row["budget"] is None]
    against = (
        f"full depth of the same model ({pareto.words}); of {len(signals)} signals and budgets the one that "
        "saves most FLOPs on calibration documents of its own at no more than 1 % more perplexity there "
        "(one-sided 95 %): "
    )
    for name, best, held in (
        ("quality", cheapest(signals), against),
        ("static", cheapest(static), "the same, for everybody leaving at one exit: "),
    ):
        ways = pareto.both_ways(best["policy"]) if best else None
        yield from bar_rows(name, held + told(best), ways)


def bar_rows(name: str, held: str, ways: BothWays | None) -> Iterator[Row]:
    """Speed, rise in perplexity, FLOPs and seconds saved; none where nothing was chosen but full depth."""
    speed, rise, flops, time = (
        (ways.speed, ways.ppl_increase, ways.flop_saving, ways.wall_saving)
        if ways
        else (FULL_DEPTH, NOTHING, NOTHING, NOTHING)
    )
    kept = rise <= MOST_RISE
    held_to_it = name == "quality"
    broken = f"; it breaks that on test text, so its {speed:.2f}x count as none"
    yield Row(
        f"{name}_speed_at_1_percent_{HELD}",
        speed if kept else FULL_DEPTH,
        "x speed",
        ">= 1.2" if held_to_it else None,
        held + ("" if kept else broken),
    )
    about = f"full depth, on all test text; what {name}_speed_at_1_percent_{HELD} tells of"
    most = f"<= {100 * MOST_RISE:g}" if held_to_it else None
    for what, value, limit in (
        ("ppl_increase", rise, most),
        ("flop_saving", flops, None),
        ("wall_saving", time, None),
    ):
        yield Row(f"{name}_{what}_{HELD}", value.scaled(100), "%", limit, about)


FULL_DEPTH, NOTHING = Estimate.within(1.0, [1.0, 1.0], 0), Estimate.within(0.0, [0.0, 0.0], 0)
"""What counts where nothing may leave, by definition: no repetition is behind it."""


class Pareto:
    """A project's model and exit classifiers, and what each policy gains and costs."""

    def __init__(self, root: Path, budgets: Sequence[float]):
        """``budgets`` are those that the learned signal is tried at."""
        self.budgets = budgets
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
        trained, layers = lm.params["pretrain"], "+".join(map(str, sizes.block_layers))
        self.words = (
            f"{trained['method']}, trained in {trained['precision']}, {layers} layers of width {sizes.width}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """Everybody at each exit, every signal at every budget, and finer budgets of the best signal."""
        model = self.executor.model
        rows = [
            self.row(f"everybody at exit {exit}", None, FixedExit(exit), self.all)
            for exit in range(model.config.num_blocks - 1)
        ]
        grid = []
        for signal in self.exits.config["signals"]:
            budgets = self.budgets if signal == LEARNED else FEW_BUDGETS
            for first in sorted({0, (model.config.num_blocks - 1) // 2} if signal == LEARNED else {0}):
                grid += [
                    self.row(signal, budget, policy, self.some)
                    for budget in budgets
                    if (policy := self.policy(signal, first, budget))
                ]
        best = cheapest(grid)
        if best is None:
            return rows + grid
        kept, broken = (
            best["budget"],
            max((budget for budget in self.budgets if budget < best["budget"]), default=0.0),
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
            first=first,
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
            "calibration_windows": len(calibration.chosen),
            **{
                f"calibration_{key}": chosen_by[key]
                for key in ("ppl_increase", "ppl_increase_high", "flop_saving")
            },
        }

    def both_ways(self, policy: Policy) -> BothWays:
        """All test windows at full depth and under ``policy``."""
        return both_ways(self.executor, self.test.windows, policy, BATCH)


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
    """What was chosen, in words."""
    if row is None:
        return "none loses that little"
    budget = "" if row["budget"] is None else f" within {row['budget']:.1%} of the FLOPs"
    later = f" from exit {row['first_exit']} on" if row["first_exit"] and row["budget"] else ""
    return f"{row['signal']}{later}{budget}, {row['shallow_ratio']:.0%} leave"
