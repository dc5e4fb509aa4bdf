"""What the default run's model saves by the clock at its threshold, against the FLOPs that it saves.

All test windows are scored at full depth and routed in turn, under the policy that stage evaluate chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.both_ways import both_ways
from benchmarks.measure import ROOT, Row, Skipped
from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.models.store import load_model
from offramp.params import Declared, load_params
from offramp.routing.choice import choose_policy
from offramp.routing.executor import Executor


def run() -> Iterator[Row]:
    if not (ROOT / "routed/manifest.json").exists():
        raise Skipped("the pipeline has not been run in this checkout; run `make repro` first")
    yield from rows(load_params("evaluate", ROOT), ROOT)


def rows(params: Declared, root: Path) -> Iterator[Row]:
    """The rows of a project that has run with ``params``."""
    data, lm, classifiers = (
        open_artifact(root / path, kind)
        for path, kind in (("data", "data"), ("models/lm", "lm"), ("models/exits", "exits"))
    )
    windows, executor = TokenWindows(data, "test"), Executor(load_model(lm), params.routing.kv)
    chosen = choose_policy(
        params.threshold,
        Exits(classifiers),
        executor.model,
        window=windows.window,
        signals=params.exits,
        settings=params.routing,
        device=torch.device("cpu"),
    )
    ways = both_ways(executor, windows, chosen.policy, params.routing.batch_size)
    sizes = executor.model.config
    about = (
        f"full depth of the default run's model ({'+'.join(map(str, sizes.block_layers))} layers of width "
        f"{sizes.width}), threshold {params.threshold}: {ways.leaves.mean():.0%} of {len(ways.leaves)} test "
        f"tokens leave; batches of {params.routing.batch_size} windows of {windows.window}"
    )
    yield Row("default_run_wall_saving", ways.wall_saving.scaled(100), "%", None, about)
    yield Row("default_run_flop_saving", ways.flop_saving.scaled(100), "%", None, about)
    yield Row(
        "default_run_wall_over_flop_saving", ways.wall_over_flop_saving, "wall / flop saving", None, about
    )
