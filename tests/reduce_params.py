"""Shrink a params.yaml in place so that the whole pipeline runs in about a minute: same shape, less of everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.projects import set_params

REDUCED: dict[str, Any] = {
    "threshold": 0.8,
    "window": 64,
    "corpus.calibration_fraction": 0.02,
    "corpus.test_fraction": 0.02,
    "model.width": 64,
    "model.ffn_width": 128,
    "model.block_layers": [1, 2],
    "pretrain.steps": 80,
    "pretrain.batch_size": 16,
    "pretrain.evaluate_every": 20,
    "pretrain.evaluate_windows": 32,
    "exits.max_epochs": 8,
    "exits.risk.tolerance": 0.2,
    "exits.hidden": [32],
    "routing.curve_fractions": [0.3, 0.7],
    "routing.control_windows": 64,
    "routing.timing_batches": 4,
    "routing.bootstrap": 200,
    "report.text_tokens": 200,
}


def reduce_params(path: Path, **more: Any) -> None:
    """Apply REDUCED and then ``more`` (dots written as double underscores) to the file."""
    set_params(path, {**REDUCED, **{key.replace("__", "."): value for key, value in more.items()}})


if __name__ == "__main__":
    reduce_params(Path(sys.argv[1]))
