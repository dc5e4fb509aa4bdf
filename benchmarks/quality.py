"""Quality against compute of the model in models/: perplexity, agreement and bits per byte, FLOPs and seconds, for every signal.

Thresholds, one per exit, are those that ``threshold: budget`` finds on held-out calibration text; everything is measured on test
windows. Writes metrics/plots/pareto.csv.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.measure import ROOT, Row, Skipped, seconds
from offramp.corpus.token_bytes import bits_per_byte, token_bytes
from offramp.corpus.tokenizer import open_tokenizer
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.lineage.artifact import open_artifact, write_text
from offramp.models.store import load_model
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.evaluate import run_split, spread_windows
from offramp.routing.executor import Executor
from offramp.routing.policies import Scorer, ThresholdPolicy
from offramp.routing.thresholds import HeldOut, budget_thresholds

BUDGETS = (0.98, 0.94, 0.9, 0.86, 0.82, 0.78, 0.74, 0.66, 0.5)
"""FLOPs as shares of a full-depth pass."""
WINDOWS, BATCH, PAIRS = 192, 32, 6
MOST_RISE = 0.01
COLUMNS = ("signal", "budget", "shallow_ratio", "ppl", "ppl_increase", "agreement", "bits_per_byte", "flop_saving", "wall_saving")


def run() -> Iterator[Row]:
    if not (ROOT / "models/exits/manifest.json").exists():
        raise Skipped("there is no models/exits; run `make repro` first")
    data, lm, made = (open_artifact(ROOT / path, kind) for path, kind in (("data", "data"), ("models/lm", "lm"), ("models/exits", "exits")))
    exits, windows, executor, device = Exits(made), TokenWindows(data, "test"), Executor(load_model(lm)), torch.device("cpu")
    chosen = spread_windows(len(windows), WINDOWS)
    target = torch.cat([windows.batch(part)[1].flatten() for part in chosen.split(BATCH)]).numpy()
    num_bytes = float(token_bytes(open_tokenizer(data), data.meta["kind"])[target].sum())
    full = run_split(executor, windows, chosen, None, BATCH, device, name="full depth")
    whole, rows = full_depth_flops(executor.model, len(target), windows.window), []
    for signal in exits.config["signals"]:
        held_out, scorer = HeldOut(**exits.held_out(signal, "select")), Scorer(exits, signal, device)
        costs = np.array(exit_costs(executor.model, windows.window, scorer.reads_out, scorer.flops_per_token))
        for budget in BUDGETS:
            policy = ThresholdPolicy(executor.model, scorer, budget_thresholds(held_out, costs, budget))
            routed = run_split(executor, windows, chosen, policy, BATCH, device, name=f"{signal} {budget}")
            nll, reference = (float(part.loss.mean(dtype=np.float64)) for part in (routed, full))
            rows.append({
                "signal": signal, "budget": budget, "shallow_ratio": float((routed.exit < executor.model.config.num_blocks - 1).mean()),
                "ppl": np.exp(nll), "ppl_increase": np.exp(nll - reference) - 1, "agreement": float((routed.argmax == full.argmax).mean()),
                "bits_per_byte": bits_per_byte(nll * len(target), num_bytes),
                "flop_saving": 1 - executed_flops(executor.model, routed.work, policy.flops_per_token) / whole,
                "wall_saving": wall_saving(executor, windows, chosen, policy),
            })
    lines = [",".join(COLUMNS), *(",".join(str(row[name]) for name in COLUMNS) for row in rows)]
    write_text(ROOT / "metrics/plots/pareto.csv", "\n".join(lines) + "\n")
    allowed = [row for row in rows if row["ppl_increase"] <= MOST_RISE]
    best = max(allowed, key=lambda row: row["wall_saving"])
    method = lm.params["pretrain.method"] if "pretrain.method" in lm.params else lm.params["pretrain"]["method"]
    joint = method == "joint"  # the bar is for jointly trained exits
    yield Row(f"quality_speed_at_1_percent{'_joint' if joint else ''}", 1 / (1 - best["wall_saving"]), "x speed", ">= 1.2" if joint else None,
              f"full depth of the same model ({method}); best of {len(rows)} signals and budgets with at most 1 % more perplexity: "
              f"{best['signal']}, {best['shallow_ratio']:.0%} leave, {best['flop_saving']:.0%} of the FLOPs saved, "
              f"perplexity {best['ppl_increase']:+.1%}", PAIRS)


def wall_saving(executor: Executor, windows: TokenWindows, chosen: torch.Tensor, policy: ThresholdPolicy) -> float:
    batches = [windows.batch(part) for part in chosen.split(BATCH)][:PAIRS]
    ratios = []
    for number, batch in enumerate(batches):
        arms = (lambda: executor.run(*batch, None), lambda: executor.run(*batch, policy))  # noqa: B023
        order = (0, 1) if number % 2 else (1, 0)
        times = {place: seconds(arms[place]) for place in order}
        ratios.append(times[1] / times[0])
    return 1 - statistics.median(ratios)
