"""Stage pretrain: data -> models/lm."""

from __future__ import annotations

import os
from pathlib import Path

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.weights import weight_digests
from offramp.corpus.windows import TokenWindows
from offramp.lineage.code import code_digest
from offramp.machine.device import seed_all, setup
from offramp.machine.processes import Processes, join
from offramp.machine.versions import computing_versions
from offramp.models.build import build_model
from offramp.models.store import save_model
from offramp.params import Declared
from offramp.results.pretraining import LearningCurve, Pretraining
from offramp.tracking.live import live_run
from offramp.training.pretrain import Pretrainer, num_parameters
from offramp.training.snapshots import Snapshots, snapshot_key
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    data = open_artifact(root / "data", "data")
    processes = join(
        setup(
            params.runtime.device, params.runtime.threads, spare_memory=params.pretrain.gradient_checkpointing
        )
    )
    train, calibration = TokenWindows(data, "train"), TokenWindows(data, "calibration")
    seed_all(params.pretrain.seed)
    settings, model = params.pretrain, build_model(params.model, params.pretrain, data.meta)
    key = _key(params, root, data, processes)
    # in the project itself, also where DVC runs an experiment in a copy of it
    snapshots = Snapshots(
        Path(os.environ.get("DVC_ROOT", root)) / ".resume" / key, params.runtime.snapshot_seconds
    )
    with live_run("pretrain", params, root, key, processes.main) as watch:
        result = Pretrainer(
            model, train, calibration, settings, snapshots, processes.device, processes, watch
        ).run()
        processes.leave()
        if not processes.main:
            return

        curve = [LearningCurve(**row) for row in result.curve]
        with create_artifact(root / "models/lm", "lm", params.to_json(), {"data": data}) as out:
            save_model(model, out.path, base_trained=settings.method != "frozen")
            LearningCurve.write_to(out.path / "learning_curves.csv", curve)
            out.meta.update(parameters=num_parameters(model), hardness_thresholds=result.thresholds)
        LearningCurve.write(root, curve)
        steps = sum(int(phase["steps"]) for phase in result.best.values())
        tokens = steps * settings.batch_size * train.window
        Pretraining(parameters=num_parameters(model), tokens_seen=tokens, **result.best).write(root)
        snapshots.delete()


def _key(params: Declared, root: Path, data: Artifact, processes: Processes) -> str:
    """The name of this very training: everything that its outcome hangs on, the code in ``root`` among it."""
    weights = weight_digests(Checkpoint.of(params.model)) if params.model.source == "hf" else {}
    return snapshot_key(
        {
            "checkpoint": weights,
            "params": params.to_json(),
            "data": data.digest,
            "threads": params.runtime.threads,
            "processes": processes.count,
            "made_with": computing_versions(),
            "code": code_digest("pipeline.pretrain", root),
        }
    )


main = stage(
    "pretrain",
    run,
    shared=True,
    memory="pretrain.batch_size, window or the model's sizes, or set pretrain.gradient_checkpointing: true",
)

if __name__ == "__main__":
    main()
