"""The ``exits`` artifact: exit classifiers, and calibrators of every signal, by exit."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from offramp.exits.calibration import Calibrator
from offramp.exits.classifier import ExitClassifier
from offramp.lineage.artifact import Artifact


class Exits:
    """An opened ``exits`` artifact: classifiers and calibrators by exit."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.config = json.loads(artifact.file("config.json").read_text())
        self._tensors = load_file(artifact.file("exits.safetensors"))

    def classifier(self, exit: int) -> ExitClassifier:
        state = self._part(f"classifier_{exit}.")
        classifier = ExitClassifier(len(state["mean"]), self.config["hidden"])
        classifier.load_state_dict(state)
        return classifier.eval()

    def calibrator(self, exit: int, signal: str) -> Calibrator:
        return Calibrator(self._tensors[f"knots_{exit}.{signal}"], self._tensors[f"values_{exit}.{signal}"])

    def calibration_confidences(self, signal: str) -> np.ndarray:
        """Confidences of the selection half of the calibration split, (K-1, tokens)."""
        names = [f"{signal}_{exit}" for exit in range(self.config["exits"] - 1)]
        table = pq.read_table(self.artifact.file("confidences.parquet"), columns=names)
        return np.stack([table[name].to_numpy() for name in names])

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self._tensors.items() if name.startswith(prefix)}
