"""Stage sweep: signals and controls at a grid of exit fractions, and thresholds by what may suffer.

-> metrics/plots/threshold_curve.csv, metrics/plots/allowances.csv

Apart from evaluate so that a new threshold does not run it again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from offramp.exits.store import Exits
from offramp.params import Declared
from offramp.results.routing import Allowance, CurvePoint
from offramp.routing.allowances import allowances
from offramp.routing.sweep import all_scorers, threshold_curve
from pipeline._inputs import open_routing_inputs
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    inputs = open_routing_inputs(params, root)
    exits = Exits(inputs.exits)
    scorers = all_scorers(exits, torch.device("cpu"))
    curve = threshold_curve(inputs.executor, inputs.windows, inputs.states, scorers, params.routing)
    CurvePoint.write(root, curve)
    model, window = inputs.executor.model, inputs.windows.window
    Allowance.write(root, allowances(exits, scorers, inputs.states, model, window, params.routing))


main = stage("sweep", run, memory="routing.batch_size or window")

if __name__ == "__main__":
    main()
