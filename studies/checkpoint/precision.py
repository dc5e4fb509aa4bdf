"""In which precision to train? A few steps of joint training in each, in turn: the fastest is taken."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from offramp.artifacts.artifact import open_artifact
from offramp.artifacts.files import write_json
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.machine.device import require_precision, setup
from offramp.machine.processes import ALONE
from offramp.models.build import build_model
from offramp.params import load_params
from offramp.training.fit import losses_and_gradients
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots
from studies.checkpoint.settings import StudySettings


def run(folder: Path, settings: StudySettings, device_name: str) -> None:
    """Write precision.json to the base project: tokens per second of every precision, and which is chosen."""
    machine, base = settings.devices[device_name], folder / "base"
    device = setup(device_name, machine.threads, spare_memory=machine.gradient_checkpointing)
    data = open_artifact(base / "data", "data")
    params = load_params("pretrain", base)
    exits = json.loads((base / "look.json").read_text())["chosen"]
    pretrain = params.pretrain.model_copy(update={"exit_weights": []})
    model = build_model(params.model.model_copy(update={"exits_after": exits}), pretrain, data.meta)
    windows = [TokenWindows(data, split) for split in ("train", "calibration")]
    known = [name for name in machine.precisions if _can(device, name)]
    seconds: dict[str, list[float]] = {name: [] for name in known}
    with tempfile.TemporaryDirectory() as scratch:
        phases = {
            name: Pretrainer(
                model,
                *windows,
                pretrain.model_copy(update={"precision": name}),
                Snapshots(Path(scratch), 1e9),
                device,
            ).whole_phase()
            for name in known
        }
        for step in range(machine.timed_steps + 1):  # the first is not counted: memory is set up in it
            batch = torch.arange(machine.batch_size) + step * machine.batch_size
            for name in known if step % 2 else reversed(known):
                begun = time.perf_counter()
                losses_and_gradients(phases[name], batch, step, ALONE)
                if step:
                    seconds[name].append(time.perf_counter() - begun)
    tokens = machine.batch_size * windows[0].window
    rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    write_json(
        base / "precision.json",
        {
            "chosen": max(rates, key=lambda name: rates[name]),
            "tokens_per_second": rates,
            "seconds": seconds,
            "tokens_of_a_step": tokens,
        },
    )


def _can(device: torch.device, precision: str) -> bool:
    try:
        require_precision(device, precision, "precisions")
    except UserError:
        return False
    return True
