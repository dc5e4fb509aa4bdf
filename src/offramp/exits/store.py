"""The ``exits`` artifact: exit classifiers, calibrators of signals, and confidences of held-out tokens."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from offramp.artifacts.artifact import Artifact
from offramp.artifacts.files import readable
from offramp.errors import UserError
from offramp.exits.calibration import Calibrator
from offramp.exits.classifier import ExitClassifier

HELD_OUT = "held_out.parquet"
"""Confidences, losses and predictions of the calibration tokens that no classifier was fitted on."""


class Exits:
    """An opened ``exits`` artifact."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        with readable(artifact.file("config.json")) as file:
            self.config = json.loads(file.read_text())
            if missing := {"exits", "hidden", "signals"} - self.config.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        with readable(artifact.file("exits.safetensors")) as file:
            self._tensors = load_file(file)

    def classifier(self, exit: int) -> ExitClassifier:
        """The trained classifier of an exit, in evaluation mode."""
        state = self._part(f"classifier_{exit}.")
        classifier = ExitClassifier(len(state["mean"]), self.config["hidden"], len(state["centre"]))
        classifier.load_state_dict(state)
        return classifier.eval()

    def calibrator(self, exit: int, signal: str) -> Calibrator:
        """The calibrator of a signal at an exit; UserError for a signal that the artifact does not have."""
        if signal not in self.config["signals"]:
            raise UserError(
                f"exits.confidence = {signal!r}: {self.artifact.path} knows "
                f"{', '.join(self.config['signals'])}"
            )
        return Calibrator(self._tensors[f"knots_{exit}.{signal}"], self._tensors[f"values_{exit}.{signal}"])

    def gain_slopes(self, exit: int) -> list[float]:
        """By what to multiply the benefits that the classifier of an exit predicts, full depth last.

        See ``exits.calibration.gain_slope``. UserError where there are none.
        """
        if "gain_slopes" not in self.config:
            raise UserError(
                f"{self.artifact.path} does not say how predicted benefits become gains; run "
                "`dvc repro train_exits` with exits.label gain or divergence"
            )
        return [slope["slope"] for slope in self.config["gain_slopes"][exit]]

    def held_out(self, signal: str, part: str, keep_first: int = 0) -> dict[str, np.ndarray]:
        """What is known of calibration tokens that no classifier was fitted on, as if none had left before.

        ``part`` is ``select`` or ``guarantee``; tokens at the first ``keep_first`` positions of their
        sequences are left out. Of N tokens and K exits: ``confidence`` (K-1, N), the signal calibrated;
        ``loss`` (nats) and ``argmax`` (K, N); ``target`` and ``sequence`` (N,).
        """
        exits = self.config["exits"]
        names = {
            "confidence": [f"{signal}_{exit}" for exit in range(exits - 1)],
            **{name: [f"{name}_{exit}" for exit in range(exits)] for name in ("loss", "argmax")},
        }
        read = [column for columns in names.values() for column in columns]
        with readable(self.artifact.file(HELD_OUT)) as file:
            table = pq.read_table(
                file,
                columns=[*read, "target", "sequence"],
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
