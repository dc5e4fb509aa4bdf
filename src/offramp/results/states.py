"""Results of stage collect."""

from __future__ import annotations

from pydantic import ConfigDict

from offramp.results.shape import MetricsFile, Record, TableRow, by_exit


class ExitLoss(Record):
    """Loss and accuracy of one exit over all tokens of a split, none of which left before."""

    ppl: float
    accuracy: float
    loss_mean: float
    loss_std: float
    loss_q25: float
    loss_median: float
    loss_q75: float
    entropy_mean: float


class CollectedSplit(Record):
    """Tokens of a split; its other keys are the exits, ``exit_0`` and so on."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ExitLoss]

    tokens: int

    @property
    def exits(self) -> list[ExitLoss]:
        """In the order of depth."""
        return by_exit(self.__pydantic_extra__)


class Collected(MetricsFile):
    """The losses that stage collect stored."""

    path = "metrics/states.json"

    calibration: CollectedSplit
    test: CollectedSplit


class LossShare(TableRow):
    """Share of a split's tokens whose loss at an exit lies in a bin around ``loss``."""

    path = "metrics/plots/loss_distribution.csv"

    split: str
    exit: int
    loss: float
    share: float
