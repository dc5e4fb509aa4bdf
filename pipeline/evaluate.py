"""Stage evaluate: early exit on the test split at the chosen threshold -> routed, metrics/routing.json, timing.json."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from offramp.artifacts.artifact import create_artifact
from offramp.artifacts.files import write_csv, write_json
from offramp.corpus.token_bytes import token_bytes
from offramp.corpus.tokenizer import open_tokenizer
from offramp.exits.store import Exits
from offramp.params import Declared
from offramp.routing.choice import choose_policy
from offramp.routing.evaluate import Evaluation
from pipeline._inputs import open_routing_inputs
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    inputs = open_routing_inputs(params, root)
    chosen = choose_policy(
        params.threshold,
        Exits(inputs.exits),
        inputs.executor.model,
        inputs.windows.window,
        params.exits,
        params.routing,
        inputs.device,
    )
    evaluation = Evaluation(
        inputs.executor,
        inputs.windows,
        inputs.states,
        chosen.policy,
        params.routing,
        inputs.device,
        token_bytes(open_tokenizer(inputs.data), inputs.data.meta["kind"]),
    )
    measures = evaluation.measures()
    if "risk" in chosen.rule:
        chosen.rule["risk"] |= evaluation.kept(chosen.rule["risk"])

    made_from = {
        "data": inputs.data,
        "lm": inputs.lm,
        "exits": inputs.exits,
        "states/test": inputs.states.artifact,
    }
    table = {
        name: inputs.states.column(name) for name in ("document", "sequence", "position", "token", "target")
    }
    routed = {name: getattr(evaluation.routed, name) for name in ("exit", "confidence", "loss", "argmax")}
    with create_artifact(root / "routed", "routed", params.to_json(), made_from) as out:
        pq.write_table(pa.table(table | routed), out.path / "tokens.parquet", compression="NONE")
    write_json(
        root / "metrics/routing.json",
        {
            "confidence": params.exits.confidence,
            "precision": inputs.states.precision,
            **chosen.rule,
            "threshold": {f"exit_{exit}": value for exit, value in enumerate(chosen.policy.thresholds)},
            "inputs": {name: artifact.digest for name, artifact in made_from.items()},
            **measures,
        },
    )
    write_csv(
        root / "metrics/plots/reliability.csv",
        ("exit", "confidence", "agreement", "tokens"),
        evaluation.reliability_rows(),
    )
    write_csv(
        root / "metrics/plots/exits_by_position.csv",
        ("position", "exit", "share"),
        evaluation.position_rows(),
    )
    write_json(root / "metrics/timing.json", evaluation.timing())


main = stage("evaluate", run, memory="routing.batch_size or window")

if __name__ == "__main__":
    main()
