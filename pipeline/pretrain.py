"""Stage pretrain: data -> models/lm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.weights import weight_digests
from offramp.corpus.windows import TokenWindows
from offramp.lineage.code import code_digest
from offramp.machine.device import seed_all, setup
from offramp.machine.lock import in_turn
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
    folder = _snapshot_folder(params, root, data, processes)

    with (
        _in_turn(folder, processes),
        live_run("pretrain", params, root, folder.name, processes.main) as watch,
    ):
        snapshots = Snapshots(folder, params.runtime.snapshot_seconds)
        try:
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
        except BaseException as error:
            if snapshots.goes_on:
                error.add_note(f"`dvc repro` goes on from {snapshots.goes_on}")
            raise
        snapshots.delete()


@contextmanager
def _in_turn(folder: Path, processes: Processes) -> Iterator[None]:
    """Wait for another training that takes snapshots in the same folder.

    Experiments that DVC runs side by side may share one, and so may a stage that outlived its dvc and the
    next one; each would overwrite the other's snapshots, or tear them.
    """
    with ExitStack() as stack:
        if processes.main:
            stack.enter_context(in_turn(folder.with_suffix(".lock"), "stage pretrain"))
        processes.wait()
        yield


def _snapshot_folder(params: Declared, root: Path, data: Artifact, processes: Processes) -> Path:
    """The folder for snapshots of this very training, under a key of everything that its outcome hangs on.

    They lie in the project itself, also where DVC runs an experiment in a copy of it; the code is that of the
    copy.
    """
    weights = weight_digests(Checkpoint.of(params.model)) if params.model.source == "hf" else {}
    key = snapshot_key(
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
    return Path(os.environ.get("DVC_ROOT", root)) / ".resume" / key


main = stage(
    "pretrain",
    run,
    shared=True,
    memory="pretrain.batch_size, window or the model's sizes, or set pretrain.gradient_checkpointing: true",
)

if __name__ == "__main__":
    main()
