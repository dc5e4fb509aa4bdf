"""Stages that are killed, stopped by a signal, or started twice; then the same stage once more."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

from offramp.artifacts.files import clear
from tests.faults.project import STAGES, Outcome, contents, restore, start
from tests.faults.tally import Tally

OUTPUTS = {
    "prepare": ("data", "metrics/corpus.json"),
    "pretrain": ("models/lm", "metrics/pretrain.json", "metrics/plots/learning_curves.csv"),
    "collect": ("states", "metrics/states.json", "metrics/plots/loss_distribution.csv"),
    "train_exits": ("models/exits", "metrics/exits.json", "metrics/plots/exit_fit.csv"),
    "sweep": ("metrics/plots/threshold_curve.csv", "metrics/plots/allowances.csv"),
    "evaluate": ("routed", "metrics/routing.json", "metrics/plots/reliability.csv"),
    "suitability": ("metrics/suitability.json",),
    "report": ("report",),
}
"""What DVC removes before it runs a stage."""
OFTEN = ("pretrain", "pretrain", "pretrain", *STAGES[:-1])
"""The stages that kills draw from: the one that goes on where it was more often than the others."""
LONGEST = 60
"""Lives that a stage gets at most: then it is left to end."""


def without_outputs(base: Path, root: Path, stage: str) -> None:
    """The project as DVC leaves it to a stage."""
    restore(base, root)
    for name in OUTPUTS.get(stage, ()):
        clear(root / name)


def other_than(root: Path, wanted: dict[str, str]) -> str | None:
    """What is not as it is after a run that nothing disturbed, in words."""
    present = contents(root)
    wrong = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    left = [path.name for path in root.rglob(".*.partial")]
    return f"differ: {wrong[:5]}" if wrong else f"left over: {left[:5]}" if left else None


def killed(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Kill a stage, several times in a row, each time when it is about to change a file, or at any moment."""
    stage, (lives,) = rng.choice(OFTEN), rng.choices((1, 2, 5, LONGEST), weights=(55, 25, 17, 3))
    without_outputs(base, root, stage)
    deaths = 0
    for _ in range(lives):
        if rng.random() < 0.7:
            done = start(root, stage, dies_at=rng.randint(1, 30)).wait()
        else:
            child = start(root, stage)
            time.sleep(rng.uniform(0, 1.2))
            child.send(signal.SIGKILL)
            done = child.wait()
        if done.code != -signal.SIGKILL:
            break
        deaths += 1
    last = done if done.code == 0 else start(root, stage).wait()
    wrong = f"ended with {last.code}" if last.code else other_than(root, wanted)
    tally.count(f"{stage} killed {deaths} times", last, wrong=wrong)


def stopped(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Ask a stage to end with a signal: it says so in one line, and the next run gives the same bytes."""
    stage, number = rng.choice(OFTEN), rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    without_outputs(base, root, stage)
    child = start(root, stage)
    time.sleep(rng.uniform(0.05, 0.9))
    child.send(number)
    done = child.wait()
    last = start(root, stage).wait()
    wrong = f"then ended with {last.code}" if last.code else other_than(root, wanted)
    if done.code not in (0, 128 + number) or (done.code and not re.search(r": stopped", done.said)):
        wrong = wrong or f"a signal ended it with {done.code}"
    tally.count(f"{stage} stopped by {number.name}", done, last, wrong=wrong)


def twice(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Start a stage while another lives: one of them is refused with the number of the other's process."""
    first, second = rng.choice(OFTEN), rng.choice(STAGES[:-1])
    without_outputs(base, root, first)
    one = start(root, first)
    time.sleep(rng.uniform(0, 0.5))
    other = start(root, second)
    done = {one.pid: one.wait(), other.pid: other.wait()}
    refused = [pid for pid, outcome in done.items() if outcome.code == 2]
    wrong = _not_refused(refused, done)
    again = [start(root, stage).wait() for stage in STAGES[STAGES.index(first) : -1]]
    wrong = wrong or next((f"then ended with {one.code}" for one in again if one.code), None)
    tally.count(f"{first} beside {second}", *done.values(), *again, wrong=wrong or other_than(root, wanted))


def _not_refused(refused: list[int], done: dict[int, Outcome]) -> str | None:
    """What is wrong with how two stages ended. One that came first in time may miss what the other makes."""
    for pid, outcome in done.items():
        if outcome.code not in (0, 2) or (outcome.code == 2 and len(outcome.errors) != 1):
            return f"process {pid} ended with {outcome.code}"
    for pid in refused:
        others = [str(other) for other in done if other != pid]
        lock = "still at work as process" in done[pid].said
        if lock and not any(f"process {other}" in done[pid].said for other in others):
            return "the message names another process"
    return None


def chain(root: Path, stage: str, every: int) -> int:
    """Run a stage that dies at every so many changes to files until it ends; how often it died."""
    for deaths in range(1000):
        done = start(root, stage, dies_at=every).wait()
        if done.code == 0:
            return deaths
        if done.code != -signal.SIGKILL:
            raise RuntimeError(done.said)
    raise RuntimeError(f"{stage} does not get on within {every} changes")
