"""What the default run's model saves by the clock at its threshold, against the FLOPs that it saves.

All test windows are scored at full depth and routed in turn, under the policy that stage evaluate chose.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.both_ways import both_ways
from benchmarks.measure import ROOT, Row, Skipped
from offramp.app.project import Project, open_project
from offramp.corpus.windows import TokenWindows
from offramp.routing.executor import Executor


def run() -> Iterator[Row]:
    if not (ROOT / "routed/manifest.json").exists():
        raise Skipped("the pipeline has not been run in this checkout; run `make repro` first")
    yield from rows(open_project(ROOT))


def rows(project: Project) -> Iterator[Row]:
    """The rows of a project that has run."""
    windows, settings = TokenWindows(project.data, "test"), project.params.routing
    executor, policy = Executor(project.model, settings.kv), project.policy()
    ways = both_ways(executor, windows, policy, settings.batch_size)
    sizes = executor.model.config
    about = (
        f"full depth of the default run's model ({'+'.join(map(str, sizes.block_layers))} layers of width "
        f"{sizes.width}), threshold {project.params.threshold}: {ways.leaves.mean():.0%} of "
        f"{len(ways.leaves)} test tokens leave; batches of {settings.batch_size} windows of {windows.window}"
    )
    yield Row("default_run_wall_saving", ways.wall_saving.scaled(100), "%", None, about)
    yield Row("default_run_flop_saving", ways.flop_saving.scaled(100), "%", None, about)
    yield Row(
        "default_run_wall_over_flop_saving", ways.wall_over_flop_saving, "wall / flop saving", None, about
    )
