"""Block-wise training and early exit end to end, at the size of the report exit-labels.

Offramp's path is held against the report's own way (``naive_blockwise``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import naive_blockwise as naive
from benchmarks.collect import collect
from benchmarks.inputs import RandomWindows, model
from benchmarks.measure import ROOT, Row, median_ratio, rounds, seconds
from offramp.artifacts.artifact import open_artifact
from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import label
from offramp.models.native import BlockwiseLM
from offramp.params import Pretrain, load_params
from offramp.routing.executor import Arrivals, Decision, Executor, Policy
from offramp.states.store import States
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.inputs import HeldInputs
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots

WINDOWS, SHARE = 10_000, 0.03
"""Windows of the report, and the share of them that is run: every step's cost is proportional to windows."""
WINDOW, VOCAB, BATCH, EPOCHS = 32, 32_768, 64, 10
PAIRS = 5


def run() -> Iterator[Row]:
    train = RandomWindows(int(WINDOWS * SHARE), WINDOW, VOCAB)
    held_out = RandomWindows(int(WINDOWS * SHARE / 5), WINDOW, VOCAB, seed=1)
    naive_times, times = zip(
        *(
            (naive_path(untrained(), train, held_out), library_path(untrained(), train, held_out))
            for _ in range(rounds(PAIRS))
        )
    )
    against = (
        f"the report's way (full logits; model run again in each of {EPOCHS} exit-classifier epochs, for "
        "hard tokens, "
        f"and every block on every token in evaluation): {len(train)} of 10,000 windows of 32, vocabulary "
        f"{VOCAB}, "
        "width 64, 2+2 layers; per block as many steps as one epoch has"
    )
    parts = {
        "end_to_end": sum,
        "pretraining": lambda took: took[0],
        "exits_and_evaluation": lambda took: took[1],
    }
    for part, of in parts.items():
        slow, fast = [of(took) for took in naive_times], [of(took) for took in times]
        yield Row(
            f"blockwise_{part}",
            median_ratio(slow, fast),
            "x speed",
            ">= 8" if part == "end_to_end" else None,
            f"{against}; naive {np.median(slow):.1f} s, ours {np.median(fast):.1f} s",
        )


def untrained() -> BlockwiseLM:
    """The report's model, with the library's layers."""
    return model(VOCAB, WINDOW, 64, 4, 256, (2, 2), norm="post", tied=False)


def settings(steps: int) -> Pretrain:
    """The pretrain section of the report's procedure; ``steps`` are those of both blocks together."""
    values = load_params("pretrain", ROOT).pretrain.model_dump()
    values |= {
        "method": "blockwise",
        "head": "shared",
        "steps": steps,
        "batch_size": BATCH,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup_steps": 1,
        "evaluate_every": steps,
        "evaluate_windows": 10**6,
    }
    values["blockwise"] |= {
        "context": "repack",
        "tokens": "hard",
        "hard_ratio": 0.5,
        "hard_signal": "max_prob",
        "embedding": "frozen",
        "later_rate": 0.1,
    }
    return Pretrain(**values)


def steps_per_epoch(windows: RandomWindows) -> int:
    """Batches that hold every window once."""
    return -(-len(windows) // BATCH)


class ClassifierPolicy(Policy):
    """A token leaves where the classifier's probability reaches the threshold.

    The classifier gives a logit (N,) per state (N, D).
    """

    flops_per_token = 128

    def __init__(self, classifier: Callable[[Tensor], Tensor], threshold: float):
        self.classifier, self.threshold = classifier, threshold

    def decide(self, arrivals: Arrivals) -> Decision:
        confidence = torch.sigmoid(self.classifier(arrivals.states))
        return Decision(confidence >= self.threshold, confidence)


def library_path(model: BlockwiseLM, train: RandomWindows, held_out: RandomWindows) -> tuple[float, float]:
    """Seconds of pretraining, and of everything from collected states to routed held-out text."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = settings(2 * steps_per_epoch(train))
        trainer = Pretrainer(
            model, train, held_out, params, Snapshots(root / "snapshots", 1e9), torch.device("cpu")
        )

        def route() -> None:
            """Collect states, fit the exit classifier, set its threshold and route the held-out text."""
            collect(model, train, root / "states")
            classifier, inputs = fit_from_cache(root / "states", EPOCHS)
            with torch.no_grad():
                threshold = float(torch.sigmoid(classifier(inputs)).quantile(0.5))
            executor, policy = Executor(model), ClassifierPolicy(classifier, threshold)
            for indices in torch.arange(len(held_out)).split(BATCH):
                executor.run(*held_out.batch(indices), policy)

        return seconds(trainer.run), seconds(route)


def fit_from_cache(path: Path, epochs: int) -> tuple[ExitClassifier, Tensor]:
    """The classifier of exit 0, linear, "correct" labels; and its inputs."""
    states = States(open_artifact(path, "states", verify=False))
    inputs, labels = states.hidden(0), torch.from_numpy(label(states, 0, "correct", 0.0))
    few = slice(0, 2048)
    fit = fit_classifier(
        (HeldInputs(inputs), labels),
        (HeldInputs(inputs[few]), labels[few]),
        "correct",
        [],
        learning_rate=1e-3,
        batch_size=BATCH * WINDOW,
        max_epochs=epochs,
        patience=epochs,
        seed=0,
    )
    return fit.classifier, inputs


def naive_path(model: BlockwiseLM, train: RandomWindows, held_out: RandomWindows) -> tuple[float, float]:
    """Seconds of training the blocks and selecting hard tokens, and of classifier training and evaluation."""
    steps, begun = steps_per_epoch(train), time.perf_counter()
    with torch.no_grad():  # the report embeds all sequences first; it never trains the embedding
        (tokens, targets), (held_tokens, held_targets) = (
            windows.batch(torch.arange(len(windows))) for windows in (train, held_out)
        )
        hidden, held = model.embed(tokens), model.embed(held_tokens)
    naive.train_block(model, 0, hidden, targets, BATCH, steps, 1e-3)
    naive.block_nll(model, 0, held, held_targets, BATCH)
    classifying = time.perf_counter()
    classifier = naive.train_classifier(model, 0, hidden, targets, BATCH, EPOCHS, 1e-3)
    selecting = time.perf_counter()
    hard, hard_targets, threshold = naive.hard_tokens(model, 0, classifier, hidden, targets, BATCH, 0.5)
    naive.train_block(model, 1, hard, hard_targets, BATCH, steps, 1e-4)
    held_hard, held_hard_targets, _ = naive.hard_tokens(model, 0, classifier, held, held_targets, BATCH, 0.5)
    naive.block_nll(model, 1, held_hard, held_hard_targets, BATCH)
    evaluating = time.perf_counter()
    naive.evaluate(model, classifier, threshold, held, held_targets, BATCH)
    ended = time.perf_counter()
    return classifying - begun + evaluating - selecting, selecting - classifying + ended - evaluating
