"""Quality against compute of the model in models/: perplexity, agreement and bits per byte, FLOPs and seconds, for every signal.

Thresholds, one per exit, are those that ``threshold: budget`` finds on held-out calibration text. The signal and budget that are
held to the bar are chosen by executing them on calibration documents that neither classifiers nor thresholds were made on (the
part ``guarantee``), with a margin for so little text; all that is reported is measured on test windows.
Exits are asked from the first on; the learned signal is tried from a middle one on (``routing.first_exit``), too. Beside the
signals: everybody leaving at one exit, which is a shallower model. Writes metrics/plots/pareto.csv.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import ROOT, Row, Skipped, seconds
from offramp.corpus.token_bytes import bits_per_byte, token_bytes
from offramp.corpus.tokenizer import open_tokenizer
from offramp.corpus.windows import TokenWindows
from offramp.exits.signals import LEARNED
from offramp.exits.store import Exits
from offramp.lineage.artifact import open_artifact, write_text
from offramp.models.store import load_model
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.evaluate import run_split, spread_windows
from offramp.routing.executor import Executor, Policy
from offramp.routing.policies import FixedExit, Scorer, ThresholdPolicy
from offramp.routing.thresholds import NOBODY, HeldOut, budget_thresholds

BUDGETS = (0.92, 0.85, 0.8, 0.75, 0.7, 0.6)
"""FLOPs as shares of a full-depth pass; those that a later first exit cannot keep are left out."""
WINDOWS, BATCH, PAIRS = 192, 32, 4
RETIMED = 18
"""Timed batches of the row that is held to the bar, which is measured once more when it has been chosen."""
MOST_RISE = 0.01
"""In perplexity; a choice that keeps it on calibration text and breaks it on test text counts as full depth, 1.0x."""
ONE_SIDED = 1.645
"""Standard errors over windows that a choice must stay below ``MOST_RISE`` on calibration text: one-sided 95 %."""
COLUMNS = ("signal", "first_exit", "budget", "shallow_ratio", "ppl", "ppl_increase", "agreement", "bits_per_byte", "flop_saving", "wall_saving",
           "calibration_ppl_increase", "calibration_ppl_increase_high", "calibration_flop_saving")


def run() -> Iterator[Row]:
    if not (ROOT / "models/exits/manifest.json").exists():
        raise Skipped("there is no models/exits; run `make repro` first")
    data, lm, made = (open_artifact(ROOT / path, kind) for path, kind in (("data", "data"), ("models/lm", "lm"), ("models/exits", "exits")))
    exits, executor = Exits(made), Executor(load_model(lm))
    windows = TokenWindows(data, "test")
    test = Held(executor, windows, spread_windows(len(windows), WINDOWS))
    number, tokens = np.unique(exits.held_out(LEARNED, "guarantee")["sequence"], return_counts=True)
    whole = torch.from_numpy(number[tokens == windows.window].astype(np.int64))  # without windows that two parts share
    calibration = Held(executor, TokenWindows(data, "calibration"), whole[spread_windows(len(whole), WINDOWS)])
    num_bytes = float(token_bytes(open_tokenizer(data), data.meta["kind"])[test.target].sum())
    rows: list[dict[str, Any]] = []
    for name, budget, policy in policies(executor, exits, test.windows.window):
        found, before = test.run(policy, f"{name} {budget}"), calibration.run(policy, f"{name} {budget}, calibration")
        rows.append({
            "signal": name, "first_exit": policy.first, "budget": budget, "policy": policy, **found,
            "bits_per_byte": bits_per_byte(float(np.log(found["ppl"])) * len(test.target), num_bytes),
            "wall_saving": wall_saving(executor, test, policy, PAIRS),
            **{f"calibration_{key}": before[key] for key in ("ppl_increase", "ppl_increase_high", "flop_saving")},
        })
    lines = [",".join(COLUMNS), *(",".join("" if row[key] is None else str(row[key]) for key in COLUMNS) for row in rows)]
    write_text(ROOT / "metrics/plots/pareto.csv", "\n".join(lines) + "\n")
    method = lm.params["pretrain.method"] if "pretrain.method" in lm.params else lm.params["pretrain"]["method"]
    joint = "_joint" if method == "joint" else ""  # the bar is for jointly trained exits
    static, signals = ([row for row in rows if (row["budget"] is None) == fixed] for fixed in (True, False))
    best, fixed = cheapest(signals), cheapest(static)
    for row in (best, fixed):
        if row:
            row["wall_saving"] = wall_saving(executor, test, row["policy"], RETIMED)
    met = best is not None and best["ppl_increase"] <= MOST_RISE
    yield Row(f"quality_speed_at_1_percent{joint}", 1 / (1 - best["wall_saving"]) if met else 1.0, "x speed",
              ">= 1.2" if joint else None,
              f"full depth of the same model ({method}, {'+'.join(map(str, executor.model.config.block_layers))} layers of width "
              f"{executor.model.config.width}); of {len(signals)} signals and budgets the one that saves most FLOPs on calibration documents "
              f"of its own at no more than 1 % more perplexity there (one-sided 95 %); on test text: {told(best)}", RETIMED)
    yield Row(f"static_speed_at_1_percent{joint}", 1 / (1 - fixed["wall_saving"]) if fixed else 1.0, "x speed", None,
              f"the same, for everybody leaving at one exit: {told(fixed)}", RETIMED)


def policies(executor: Executor, exits: Exits, window: int) -> Iterator[tuple[str, float | None, Policy]]:
    """Everybody at each exit, then every signal at every budget."""
    model = executor.model
    for exit in range(model.config.num_blocks - 1):
        yield f"everybody at exit {exit}", None, FixedExit(exit)
    for signal in exits.config["signals"]:
        held_out, scorer = HeldOut(**exits.held_out(signal, "select")), Scorer(exits, signal, torch.device("cpu"))
        for first in {0, (model.config.num_blocks - 1) // 2} if signal == LEARNED else {0}:
            costs = np.array(exit_costs(model, window, scorer.reads_out, scorer.flops_per_token, first))
            for budget in (budget for budget in BUDGETS if budget > costs[first]):
                thresholds = budget_thresholds(held_out.after(first), costs[first:], budget)
                yield signal, budget, ThresholdPolicy(model, scorer, [NOBODY] * first + thresholds, first)


class Held:
    """Windows of a split, and what full depth makes of them."""

    def __init__(self, executor: Executor, windows: TokenWindows, chosen: Tensor):
        """``chosen`` (N,) are the numbers of the windows."""
        self.executor, self.windows, self.chosen = executor, windows, chosen
        self.target = torch.cat([windows.batch(part)[1].flatten() for part in self.chosen.split(BATCH)]).numpy()
        self.full = run_split(executor, windows, self.chosen, None, BATCH, torch.device("cpu"), name="full depth")

    def run(self, policy: Policy, name: str) -> dict[str, float]:
        routed = run_split(self.executor, self.windows, self.chosen, policy, BATCH, torch.device("cpu"), name=name)
        model = self.executor.model
        nll, reference = (float(part.loss.mean(dtype=np.float64)) for part in (routed, self.full))
        rises = (routed.loss - self.full.loss).reshape(len(self.chosen), -1).mean(1, dtype=np.float64)
        high = rises.mean() + ONE_SIDED * rises.std(ddof=1) / len(rises) ** 0.5
        flops = executed_flops(model, routed.work, policy.flops_per_token)
        return {"shallow_ratio": float((routed.exit < model.config.num_blocks - 1).mean()), "ppl": float(np.exp(nll)),
                "ppl_increase": float(np.exp(nll - reference) - 1), "ppl_increase_high": float(np.exp(high) - 1),
                "agreement": float((routed.argmax == self.full.argmax).mean()),
                "flop_saving": 1 - flops / full_depth_flops(model, len(self.target), self.windows.window)}


def cheapest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that saves most FLOPs on calibration text, of those that lose little there, if any does."""
    return max((row for row in rows if row["calibration_ppl_increase_high"] <= MOST_RISE), key=lambda row: row["calibration_flop_saving"],
               default=None)


def told(row: dict[str, Any] | None) -> str:
    if row is None:
        return "none loses that little"
    budget = "" if row["budget"] is None else f" within {row['budget']:.0%} of the FLOPs"
    later = f" from exit {row['first_exit']} on" if row["first_exit"] and row["budget"] else ""
    return (f"{row['signal']}{later}{budget}, {row['shallow_ratio']:.0%} leave, {row['flop_saving']:.0%} of the FLOPs and "
            f"{row['wall_saving']:.0%} of the time saved, perplexity {row['ppl_increase']:+.2%}")


def wall_saving(executor: Executor, held: Held, policy: Policy, pairs: int) -> float:
    """1 - routed / full-depth seconds, the median over ``pairs`` batches run both ways in turn."""
    parts = held.chosen.split(BATCH)
    batches = [held.windows.batch(parts[number % len(parts)]) for number in range(pairs)]
    ratios = []
    for number, batch in enumerate(batches):
        arms = (lambda: executor.run(*batch, None), lambda: executor.run(*batch, policy))  # noqa: B023
        order = (0, 1) if number % 2 else (1, 0)
        times = {place: seconds(arms[place]) for place in order}
        ratios.append(times[1] / times[0])
    return 1 - statistics.median(ratios)
