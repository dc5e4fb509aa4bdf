"""Stage collect: data, models/lm -> states/calibration, states/test."""

from __future__ import annotations

from pathlib import Path

from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.machine.device import setup
from offramp.machine.processes import join
from offramp.models.store import load_model
from offramp.params import Declared
from offramp.results.states import Collected, LossShare
from offramp.states.collect import collect_states, loss_histogram, summarise
from offramp.states.store import States
from offramp.tracking.live import live_run
from pipeline._live import run_key
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    data = open_artifact(root / "data", "data")
    lm = open_artifact(root / "models/lm", "lm", inputs={"data": data})
    processes = join(setup(params.runtime.device, params.runtime.threads))
    model = load_model(lm)
    inputs = {"data": data, "lm": lm}
    key = run_key("collect", params, root, inputs)
    with live_run("collect", params, root, key, processes.main) as watch:
        collected = {
            split: collect_states(
                model,
                TokenWindows(data, split),
                root / "states" / split,
                params.collect,
                params=params.to_json(),
                inputs=inputs,
                device=processes.device,
                processes=processes,
                watch=watch,
            )
            for split in ("calibration", "test")
        }
        processes.leave()
        if not processes.main:
            return
        states = {split: States(artifact) for split, artifact in collected.items()}
        Collected(**{split: summarise(of_split) for split, of_split in states.items()}).write(root)
        LossShare.write(root, [row for split in states for row in loss_histogram(states[split], split)])


main = stage("collect", run, shared=True, memory="collect.batch_size, collect.shard_tokens or window")

if __name__ == "__main__":
    main()
