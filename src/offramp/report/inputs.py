"""What the report is made from: metrics, plot tables and the routed tokens, read and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from offramp.artifacts.artifact import Artifact, open_artifact
from offramp.artifacts.files import readable
from offramp.corpus.tokenizer import FILE as TOKENIZER
from offramp.errors import UserError
from offramp.results.corpus import Corpus
from offramp.results.pretraining import LearningCurve, Pretraining
from offramp.results.routing import Allowance, CurvePoint, PositionShare, ReliabilityBin, Routing, Timing
from offramp.results.states import LossShare
from offramp.results.suitability import Suitability


@dataclass(frozen=True)
class Measurements:
    """One pipeline run as its results tell it."""

    corpus: Corpus
    pretraining: Pretraining
    routing: Routing
    timing: Timing
    suitability: Suitability
    learning_curves: list[LearningCurve]
    losses: list[LossShare]
    curve: list[CurvePoint]
    allowances: list[Allowance]
    reliability: list[ReliabilityBin]
    positions: list[PositionShare]
    tokens: list[dict[str, Any]]
    """The first routed test tokens, in reading order: document, target, exit, confidence, loss, argmax."""
    data: Artifact
    routed: Artifact

    @property
    def exits(self) -> int:
        """K: exits are numbered 0..K-1 and the last one is full depth."""
        return len(self.routing.exit_fraction)


def read_measurements(root: Path, text_tokens: int) -> Measurements:
    """Read everything under ``root``, and ``text_tokens`` routed tokens.

    UserError if a file is missing, of another shape, or of another run.
    """
    # only the tokenizer is read of the data; hashing all text is not needed
    data = open_artifact(root / "data", "data", verify=(TOKENIZER,))
    routed = open_artifact(root / "routed", "routed", inputs={"data": data})
    routing = Routing.read(root)
    for name, digest in routing.inputs.items():
        if routed.inputs.get(name) != digest:
            raise UserError(
                f"{Routing.path} was made from another {name} (digest {digest[:12]}) than routed/ "
                f"(digest {str(routed.inputs.get(name))[:12]}); run `dvc repro` to make them match"
            )
    # opened as a file, since as a data set it would import pandas
    with readable(routed.file("tokens.parquet")) as path, pq.ParquetFile(path) as file:
        tokens = file.read(["document", "token", "target", "exit", "confidence", "loss", "argmax"])
    return Measurements(
        corpus=Corpus.read(root),
        pretraining=Pretraining.read(root),
        routing=routing,
        timing=Timing.read(root),
        suitability=Suitability.read(root),
        learning_curves=LearningCurve.read(root),
        losses=LossShare.read(root),
        curve=CurvePoint.read(root),
        allowances=Allowance.read(root),
        reliability=ReliabilityBin.read(root),
        positions=PositionShare.read(root),
        # one more: a row's target belongs to the next row's document
        tokens=tokens.slice(0, text_tokens + 1).to_pylist(),
        data=data,
        routed=routed,
    )
