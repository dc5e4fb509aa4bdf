"""Stage evaluate: early exit on the test split -> routed, metrics/routing.json, metrics/timing.json."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from offramp.artifacts.artifact import create_artifact
from offramp.corpus.token_bytes import token_bytes
from offramp.corpus.tokenizer import open_tokenizer
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.params import Declared
from offramp.results.routing import PositionShare, ReliabilityBin
from offramp.routing.choice import choose_policy
from offramp.routing.evaluation import evaluate
from offramp.routing.quality import Calibration
from offramp.tracking.origin import origin
from pipeline._inputs import open_routing_inputs
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    inputs = open_routing_inputs(params, root)
    chosen = choose_policy(
        params.threshold,
        Exits(inputs.exits),
        inputs.executor.model,
        window=inputs.windows.window,
        signals=params.exits,
        settings=params.routing,
        device=inputs.device,
        calibration=Calibration(inputs.executor, TokenWindows(inputs.data, "calibration")),
    )
    states = inputs.states
    made_from = {"data": inputs.data, "lm": inputs.lm, "exits": inputs.exits, "states/test": states.artifact}
    evaluation = evaluate(
        inputs.executor,
        inputs.windows,
        states,
        chosen,
        params.routing,
        signal=params.exits.confidence,
        inputs={name: artifact.digest for name, artifact in made_from.items()},
        bytes_of_token=token_bytes(open_tokenizer(inputs.data), inputs.data.meta["kind"]),
        origin=origin(root),
    )
    columns = {name: states.column(name) for name in ("document", "sequence", "position", "token", "target")}
    columns |= {name: getattr(evaluation.routed, name) for name in ("exit", "confidence", "loss", "argmax")}
    with create_artifact(root / "routed", "routed", params.to_json(), made_from) as out:
        if chosen.quality:  # whoever opens the project later need not search again
            out.meta["thresholds"] = chosen.policy.thresholds
        pq.write_table(pa.table(columns), out.path / "tokens.parquet", compression="NONE")
    evaluation.results.write(root)
    ReliabilityBin.write(root, evaluation.reliability)
    PositionShare.write(root, evaluation.positions)
    evaluation.timing.write(root)


main = stage("evaluate", run, memory="routing.batch_size or window")

if __name__ == "__main__":
    main()
