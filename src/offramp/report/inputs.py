"""What the report is made from: metrics, plot tables and the routed tokens, read and checked once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from offramp.artifacts.artifact import Artifact, open_artifact
from offramp.errors import UserError

TABLES = {
    "learning_curves": ("phase", "exit", "step", "tokens", "train_loss", "calibration_ppl"),
    "loss_distribution": ("split", "exit", "loss", "share"),
    "threshold_curve": ("signal", "fraction", "shallow_ratio", "ppl", "layer_saving", "flop_saving"),
    "reliability": ("exit", "confidence", "agreement", "tokens"),
    "exits_by_position": ("position", "exit", "share"),
}
"""The plot tables in metrics/plots and the columns of each that the figures read."""


@dataclass(frozen=True)
class Measurements:
    """One pipeline run as its metrics files tell it."""

    corpus: dict[str, Any]
    pretrain: dict[str, Any]
    routing: dict[str, Any]
    timing: dict[str, Any]
    suitability: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    tokens: pd.DataFrame
    """The first routed test tokens, in reading order: document, target, exit, confidence, loss, argmax."""
    data: Artifact
    routed: Artifact

    @property
    def exits(self) -> int:
        """K: exits are numbered 0..K-1 and the last one is full depth."""
        return len(self.routing["exit_fraction"])


def read_measurements(root: Path, text_tokens: int) -> Measurements:
    """Read everything under ``root``; UserError if a file is missing, unreadable or of another run."""
    metrics = root / "metrics"
    data = open_artifact(
        root / "data", "data", verify=False
    )  # only tokenizer.json is read; hashing all text is not
    routed = open_artifact(root / "routed", "routed", inputs={"data": data})
    routing = _read_json(metrics / "routing.json")
    for name, digest in routing["inputs"].items():
        if routed.inputs.get(name) != digest:
            raise UserError(
                f"metrics/routing.json was made from another {name} (digest {digest[:12]}) than routed/ "
                f"(digest {str(routed.inputs.get(name))[:12]}); run `dvc repro` to make them match"
            )
    tokens = pd.read_parquet(
        routed.file("tokens.parquet"),
        columns=["document", "token", "target", "exit", "confidence", "loss", "argmax"],
    )
    return Measurements(
        corpus=_read_json(metrics / "corpus.json"),
        pretrain=_read_json(metrics / "pretrain.json"),
        routing=routing,
        timing=_read_json(metrics / "timing.json"),
        suitability=_read_json(metrics / "suitability.json"),
        tables={
            name: _read_table(metrics / "plots" / f"{name}.csv", columns) for name, columns in TABLES.items()
        },
        tokens=tokens.iloc[: text_tokens + 1],  # one more: a row's target belongs to the next row's document
        data=data,
        routed=routed,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro` to make it") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path} is not valid JSON; delete it and run `dvc repro` to make it again") from None


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro` to make it") from None
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError):
        raise UserError(
            f"{path} is not a CSV table; delete it and run `dvc repro` to make it again"
        ) from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}; delete it and run `dvc repro` to make it again"
        )
    return table
