"""Stage suitability: what exits are worth, what is attainable, what asking costs -> metrics/suitability.json.

Apart from evaluate so that a new threshold does not run it again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from offramp.analysis.suitability import assess, of_states
from offramp.artifacts.artifact import open_artifact
from offramp.machine.device import setup
from offramp.models.store import load_model
from offramp.params import Declared
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    data = open_artifact(root / "data", "data")
    lm = open_artifact(root / "models/lm", "lm", inputs={"data": data})
    states = open_artifact(root / "states/test", "states", inputs={"data": data, "lm": lm})
    model = load_model(lm).to(setup(params.runtime.device, params.runtime.threads))
    result = assess(of_states(data, lm, model, states, params.routing, params.exits.hidden))
    result.write(root)
    logging.info("%s", result.advice.sentence)


main = stage("suitability", run, memory="routing.batch_size or window")

if __name__ == "__main__":
    main()
