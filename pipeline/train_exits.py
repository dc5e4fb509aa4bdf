"""Stage train_exits: states/calibration -> models/exits."""

from __future__ import annotations

from pathlib import Path

from offramp.artifacts.artifact import open_artifact
from offramp.exits.store import Exits
from offramp.machine.device import setup
from offramp.params import Declared
from offramp.results.exits import FitEpoch, ThresholdEffect
from offramp.routing.thresholds import threshold_table
from offramp.states.store import States
from offramp.tracking.live import live_run
from offramp.training.exits import train_exits
from pipeline._live import run_key
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    calibration = open_artifact(root / "states/calibration", "states")
    setup("cpu", params.runtime.threads)
    key = run_key("train_exits", params, root, {"states/calibration": calibration})
    with live_run("train_exits", params, root, key) as watch:
        exits, fitted, epochs = train_exits(
            States(calibration), params.exits, root / "models/exits", params.to_json(), watch
        )
        fitted.write(root)
        FitEpoch.write(root, epochs)
        ThresholdEffect.write(root, threshold_table(Exits(exits)))


main = stage("train_exits", run, memory="exits.batch_size, exits.hidden or the corpus")

if __name__ == "__main__":
    main()
