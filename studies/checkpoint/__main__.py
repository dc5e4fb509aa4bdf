"""What early exit gives a real checkpoint: frozen, fine-tuned, and trained for its exits.

    python -m studies.checkpoint                      run what is not done yet, arm by arm
    python -m studies.checkpoint --status             say what is done
    python -m studies.checkpoint --arm joint          the control and that arm alone

It can be stopped at any time and started again: a training goes on from its last snapshot. After every arm
the results so far are in studies/metrics/checkpoint.<device>.json, beside those of arms that were measured
elsewhere against the same control; `python -m docs` makes docs/checkpoint.md of it. With other settings,
tokens or models than the study's own they stay in the folder of the models.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from offramp.artifacts.files import write_json
from offramp.errors import UserError
from offramp.params import read_params
from studies.checkpoint.gather import benchmarks, gathered, joined, write_rows
from studies.checkpoint.plan import SETTINGS, Plan
from studies.checkpoint.projects import Unit
from studies.checkpoint.results import read, results_path
from studies.checkpoint.settings import FILE, StudySettings, read_settings
from studies.common.study import HOME

RESULTS = "results.json"
"""In the folder of models: the results, also where they are not published."""


def main(arguments: Sequence[str], home: Path = HOME) -> None:
    """The command line. UserError for what cannot be run, and where a unit of work fails."""
    given = _parser().parse_args(arguments)
    changed = given.settings != FILE or given.folder or given.tokens or given.checkpoint
    settings = read_settings(given.settings)
    changes = {"checkpoint": given.checkpoint} if given.checkpoint else {}
    if given.device not in settings.devices:
        raise UserError(f"--device {given.device}: choose from {', '.join(settings.devices)}")
    if given.tokens:
        machine = settings.devices[given.device].model_copy(update={"tokens": given.tokens})
        changes["devices"] = {**settings.devices, given.device: machine}
    plan = Plan(
        given.folder or home / "build/checkpoint" / given.device,
        given.device,
        settings.model_copy(update=changes),
        tuple(given.arm),
    )
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    signal.signal(signal.SIGTERM, _stop)
    if given.status:
        print("\n".join(status(plan)))
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with open(plan.folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{plan.folder} is being worked on; see --status, or give another --folder"
            ) from None
        plan.make()
        run(plan, home, lock.fileno(), publish=not changed)


def run(plan: Plan, home: Path, lock: int, publish: bool) -> None:
    """Run every unit that is not done, and write the results after every arm.

    They go to the plan's folder and, where they are to be published, to the files that the docs read.
    """
    while True:
        units = plan.units()
        waiting = [unit for unit in units if unit.done is None]
        if not waiting:
            break
        unit = waiting[0]
        logging.info("%d of %d: %s ...", len(units) - len(waiting) + 1, len(units), unit.label)
        done = unit.run(lock)
        logging.info("%s took %.0f s, %.2f GB", unit.label, done.seconds, done.memory_gb)
        if unit.name == "measure":
            _write(plan, home, publish)
    _write(plan, home, publish)


def _write(plan: Plan, home: Path, publish: bool) -> None:
    results = gathered(plan)
    write_json(plan.folder / RESULTS, results.to_json())
    if publish:
        file = results_path(home, plan.device)
        results = joined(results, read(file))
        write_json(file, results.to_json())
        write_rows(benchmarks(results), home.parent)


def status(plan: Plan) -> list[str]:
    """A line per unit: what is done, what it took, and how far a training has come.

    The settings are those that the folder was last run with.
    """
    if not (plan.folder / SETTINGS).exists():
        return [f"{plan.folder}: nothing is done"]
    values = json.loads((plan.folder / SETTINGS).read_text())
    values.pop("device")
    plan = replace(plan, settings=StudySettings.of(values))
    units = plan.units()
    lines = [f"{plan.folder}: {sum(unit.done is not None for unit in units)} of {len(units)} units are done"]
    if plan.choice is None:
        lines.append("(arms follow once exits and precision are chosen)")
    for unit in units:
        done = unit.done
        if done:
            said = f"done {done.ended}, {done.seconds:.0f} s, {done.memory_gb:.2f} GB"
        else:
            said = _training(unit) if unit.name == "pretrain" else ""
        lines.append(f"  {unit.label:<24} {said}")
    return lines


def _training(unit: Unit) -> str:
    """How far a training had come when its last snapshot was taken."""
    files = sorted(
        (unit.project.folder / ".resume").glob("*/snapshot.pt"), key=lambda file: file.stat().st_mtime
    )
    if not files:
        return ""
    import torch

    step = torch.load(files[-1], weights_only=True, mmap=True)["progress"]["step"]
    minutes = (time.time() - files[-1].stat().st_mtime) / 60
    steps = read_params(unit.project.folder / "params.yaml").pretrain.steps
    return f"at step {step} of {steps}, {minutes:.0f} minutes ago"


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--checkpoint", help="another folder than that of settings.yaml")
    parser.add_argument("--tokens", type=int, help="budget of training tokens of an arm")
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME", help="this arm, beside the control"
    )
    parser.add_argument("--settings", type=Path, default=FILE, help="another file of settings")
    parser.add_argument(
        "--folder", type=Path, help="where models lie; default studies/build/checkpoint/DEVICE"
    )
    parser.add_argument("--status", action="store_true", help="say what is done, and run nothing")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
