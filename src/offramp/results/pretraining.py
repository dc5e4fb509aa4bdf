"""Results of stage pretrain."""

from __future__ import annotations

from pydantic import ConfigDict

from offramp.results.shape import MetricsFile, Record, TableRow


class Phase(Record):
    """A phase of pretraining, at the step whose weights were kept."""

    best_step: int
    steps: int
    calibration_ppl: float
    calibration_kl: float | None = None
    """Nats from full depth, where that is what training minimises."""


class Pretraining(MetricsFile):
    """What stage pretrain trained; its other keys are the names of the phases."""

    path = "metrics/pretrain.json"
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Phase]

    parameters: int
    tokens_seen: int

    @property
    def phases(self) -> dict[str, Phase]:
        """By name."""
        return self.__pydantic_extra__


class LearningCurve(TableRow):
    """A look at the calibration split while training."""

    path = "metrics/plots/learning_curves.csv"

    phase: str
    exit: int
    step: int
    tokens: int
    """Seen since the phase began."""
    train_loss: float | None
    """Nats, mean since the look before; empty where the exit was not trained meanwhile."""
    calibration_ppl: float
    calibration_kl: float | None = None
