"""Stage sweep: every signal and control at a grid of exit fractions -> metrics/plots/threshold_curve.csv.

Apart from evaluate so that a new threshold does not run it again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from offramp.exits.store import Exits
from offramp.params import Declared
from offramp.results.routing import CurvePoint
from offramp.routing.sweep import all_scorers, threshold_curve
from pipeline._inputs import open_routing_inputs
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    inputs = open_routing_inputs(params, root)
    scorers = all_scorers(Exits(inputs.exits), torch.device("cpu"))
    curve = threshold_curve(inputs.executor, inputs.windows, inputs.states, scorers, params.routing)
    CurvePoint.write(root, curve)


main = stage("sweep", run, memory="routing.batch_size or window")

if __name__ == "__main__":
    main()
