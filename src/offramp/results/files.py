"""All files of results, for those that look at every one of them."""

from __future__ import annotations

from offramp.results.corpus import Corpus
from offramp.results.exits import FitEpoch, FittedExits, ThresholdEffect
from offramp.results.headline import Headline
from offramp.results.pretraining import LearningCurve, Pretraining
from offramp.results.routing import Allowance, CurvePoint, PositionShare, ReliabilityBin, Routing, Timing
from offramp.results.shape import MetricsFile, TableRow
from offramp.results.states import Collected, LossShare
from offramp.results.suitability import Suitability

METRICS_FILES: tuple[type[MetricsFile], ...] = (
    Corpus,
    Pretraining,
    Collected,
    FittedExits,
    Routing,
    Timing,
    Suitability,
    Headline,
)
TABLES: tuple[type[TableRow], ...] = (
    LearningCurve,
    LossShare,
    FitEpoch,
    ThresholdEffect,
    CurvePoint,
    Allowance,
    ReliabilityBin,
    PositionShare,
)
