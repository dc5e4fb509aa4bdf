"""Results of stage train_exits."""

from __future__ import annotations

from pydantic import ConfigDict

from offramp.results.shape import Interval, MetricsFile, Record, TableRow, by_exit


class Classification(Record):
    """Binary decisions of an exit classifier, each measure beside what deciding without looking gives."""

    accuracy: float
    majority_accuracy: float
    balanced_accuracy: float
    f1: float
    majority_f1: float


class ClassifierFit(Record):
    """How the classifier of one exit was fitted; of one that pretraining taught, ``label: joint`` alone."""

    label: str
    epochs: int | None = None
    best_epoch: int | None = None
    converged: bool | None = None
    select_loss: float | None = None
    pearson_label: float | None = None
    spearman_label: float | None = None
    fit_tokens: int | None = None
    select_tokens: int | None = None
    guarantee_tokens: int | None = None
    classification: Classification | None = None
    """Of labels that are yes or no."""


class SignalQuality(Record):
    """How a signal ranks held-out tokens; see ``offramp.training.exits.signal_quality``."""

    auroc: float | None
    aurc: float
    loss_gap: float
    oracle_share: float
    spearman_loss: float | None


class GainSlope(Record):
    """Nats of true gain per nat of predicted benefit; see ``offramp.exits.calibration.gain_slope``."""

    slope: float
    interval: Interval | None
    """95 %, bootstrap over documents."""
    tokens: int
    documents: int


class FittedExit(Record):
    """The classifier and the signals of one exit on the tokens that calibrated them."""

    fit: ClassifierFit
    signals: dict[str, SignalQuality]
    agreement: float
    majority_baseline: float
    gain_slopes: dict[str, GainSlope] | None = None
    """Of classifiers of a benefit, by the key of the exit gone on to."""


class FittedExits(MetricsFile):
    """What stage train_exits fitted; the keys are the exits, ``exit_0`` and so on, without the last."""

    path = "metrics/exits.json"
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FittedExit]

    @property
    def exits(self) -> list[FittedExit]:
        """In the order of depth."""
        return by_exit(self.__pydantic_extra__)


class FitEpoch(TableRow):
    """An epoch of an exit classifier's fit."""

    path = "metrics/plots/exit_fit.csv"

    exit: int
    epoch: int
    fit_loss: float
    select_loss: float


class ThresholdEffect(TableRow):
    """What a threshold does on held-out calibration text, by cached states."""

    path = "metrics/plots/thresholds.csv"

    signal: str
    threshold: float
    shallow_ratio: float
    ppl: float
    agreement: float
