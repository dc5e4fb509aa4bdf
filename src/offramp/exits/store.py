"""The ``exits`` artifact: exit classifiers, calibrators of every signal, and held-out confidences, by exit."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from offramp.artifacts.artifact import Artifact
from offramp.errors import UserError
from offramp.exits.calibration import Calibrator
from offramp.exits.classifier import ExitClassifier

HELD_OUT = "held_out.parquet"


class Exits:
    """An opened ``exits`` artifact: classifiers and calibrators by exit."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.config = json.loads(artifact.file("config.json").read_text())
        self._tensors = load_file(artifact.file("exits.safetensors"))

    def classifier(self, exit: int) -> ExitClassifier:
        state = self._part(f"classifier_{exit}.")
        classifier = ExitClassifier(len(state["mean"]), self.config["hidden"], len(state["centre"]))
        classifier.load_state_dict(state)
        return classifier.eval()

    def calibrator(self, exit: int, signal: str) -> Calibrator:
        if signal not in self.config["signals"]:
            raise UserError(
                f"exits.confidence = {signal!r}: {self.artifact.path} knows {', '.join(self.config['signals'])}"
            )
        return Calibrator(self._tensors[f"knots_{exit}.{signal}"], self._tensors[f"values_{exit}.{signal}"])

    def held_out(self, signal: str, part: str, keep_first: int = 0) -> dict[str, np.ndarray]:
        """Calibration tokens that no classifier was fitted on, as if none had left before: ``select`` or ``guarantee``.

        Without those at the ``keep_first`` first positions of their sequences.
        ``confidence`` (K-1, N) calibrated; ``loss`` and ``argmax`` (K, N); ``target``, ``sequence`` (N,).
        """
        exits = self.config["exits"]
        names = {
            "confidence": [f"{signal}_{exit}" for exit in range(exits - 1)],
            **{name: [f"{name}_{exit}" for exit in range(exits)] for name in ("loss", "argmax")},
        }
        wanted = [column for columns in names.values() for column in columns]
        table = pq.read_table(
            self.artifact.file(HELD_OUT),
            columns=[*wanted, "target", "sequence"],
            filters=[("part", "=", part), ("position", ">=", keep_first)],
        )
        stacked = {
            name: np.stack([table[column].to_numpy() for column in columns])
            for name, columns in names.items()
        }
        return stacked | {name: table[name].to_numpy() for name in ("target", "sequence")}

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in self._tensors.items()
            if name.startswith(prefix)
        }
