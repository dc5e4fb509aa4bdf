"""The shape of every file in metrics/ and metrics/plots, each of them a class; files are read and written through it alone.

A ``MetricsFile`` is one JSON file, a ``TableRow`` is one row of a CSV file; both know where under the project's folder their
file lies. Reading is strict: a file that is missing, unreadable or of another shape is a UserError that names it, the
field and the remedy. Writing leaves out the keys that were not given: a field that may be absent has the default None,
one that is always there and may be null has none. Names and order of the fields are those of the files.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.artifacts.files import write_csv, write_json
from offramp.errors import UserError

Value = TypeVar("Value")
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""[low, high]"""


def exit_key(exit: int) -> str:
    """The key under which the files keep what belongs to an exit."""
    return f"exit_{exit}"


def by_exit(values: Mapping[str, Value]) -> list[Value]:
    """The values of the keys ``exit_0``, ``exit_1``, ..., in the order of the exits."""
    return [values[exit_key(exit)] for exit in range(len(values))]


class Record(BaseModel):
    """Named values that are checked when they are put together and do not change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the keys that were not given."""
        return self.model_dump(exclude_unset=True)


class MetricsFile(Record):
    """One JSON file in metrics/."""

    path: ClassVar[str]
    """Relative to the project's folder."""

    @classmethod
    def read(cls, root: Path) -> Self:
        """What the file of the project in ``root`` holds; UserError where it is missing or of another shape."""
        file = root / cls.path
        try:
            return cls.model_validate_json(_text(file))
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                raise _damaged(file, "is not valid JSON") from None
            raise _ill_shaped(file, "", error) from None

    @classmethod
    def read_if_there(cls, root: Path) -> Self | None:
        """The same, or None before the stage that writes the file has run."""
        return cls.read(root) if (root / cls.path).is_file() else None

    def write(self, root: Path) -> None:
        """Write the file of the project in ``root`` as a whole; ValueError for a number that is not finite."""
        write_json(root / self.path, self.to_json())


class TableRow(Record):
    """One row of a CSV file in metrics/plots; the fields are its columns, an empty cell is None."""

    path: ClassVar[str]
    """Relative to the project's folder."""

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        return tuple(cls.model_fields)

    @classmethod
    def read(cls, root: Path) -> list[Self]:
        """The rows of the file of the project in ``root``; UserError where it is missing or of another shape."""
        file = root / cls.path
        try:
            table = list(csv.reader(_text(file).splitlines(), strict=True))
        except csv.Error:
            table = []
        if not table:
            raise _damaged(file, "is not a CSV table")
        names, *lines = table
        required = [name for name, field in cls.model_fields.items() if field.is_required()]
        if missing := [name for name in required if name not in names]:
            raise _damaged(file, f"has no column {', '.join(missing)}")
        rows = []
        for number, cells in enumerate(lines, 2):
            if len(cells) != len(names):
                raise _damaged(file, f"has {len(cells)} cells in line {number} and {len(names)} columns")
            values = {
                name: cell if cell or not _may_be_none(cls, name) else None
                for name, cell in zip(names, cells)
            }
            try:
                rows.append(cls.model_validate(values, strict=False))
            except ValidationError as error:
                raise _ill_shaped(file, f"line {number}, ", error) from None
        return rows

    @classmethod
    def write(cls, root: Path, rows: Iterable[Self]) -> None:
        """Write the file of the project in ``root`` as a whole."""
        cls.write_to(root / cls.path, rows)

    @classmethod
    def write_to(cls, file: Path, rows: Iterable[Self]) -> None:
        """Write the table to another file; columns that no row was given are left out."""
        records = [row.to_json() for row in rows]
        given = {name for record in records for name in record}
        columns = [name for name, field in cls.model_fields.items() if field.is_required() or name in given]
        write_csv(file, columns, records)


class SplitCounts(Record):
    """Size of one split."""

    documents: int
    characters: int
    tokens: int
    windows: int
    unknown_rate: float
    """Share of text tokens (end tokens aside) that are the unknown token."""


class Corpus(MetricsFile):
    """What stage prepare made of the text."""

    path = "metrics/corpus.json"

    vocab_size: int
    window: int
    train: SplitCounts
    calibration: SplitCounts
    test: SplitCounts


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
        return self.__pydantic_extra__


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
        return by_exit(self.__pydantic_extra__)


class Collected(MetricsFile):
    """The losses that stage collect stored."""

    path = "metrics/states.json"

    calibration: CollectedSplit
    test: CollectedSplit


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
    """How a signal ranks held-out tokens; see ``offramp.exits.train.signal_quality``."""

    auroc: float | None
    aurc: float
    loss_gap: float
    oracle_share: float
    spearman_loss: float | None


class FittedExit(Record):
    """The classifier and the signals of one exit on the tokens that calibrated them."""

    fit: ClassifierFit
    signals: dict[str, SignalQuality]
    agreement: float
    majority_baseline: float


class FittedExits(MetricsFile):
    """What stage train_exits fitted; the keys are the exits, ``exit_0`` and so on, without the last."""

    path = "metrics/exits.json"
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FittedExit]

    @property
    def exits(self) -> list[FittedExit]:
        return by_exit(self.__pydantic_extra__)


class Quality(Record):
    """What tokens are predicted like, each at the exit it took."""

    ppl: float
    accuracy: float
    agreement: float
    """Share of tokens whose argmax is that of full depth."""
    shallow_ratio: float
    """Share of tokens that leave before the last block."""


class FixedDepth(Quality):
    """All tokens leaving at one exit."""

    layer_saving: float
    flop_saving: float


class Controls(Record):
    """What routing is held against: fixed depths on all tokens, and others on control tokens at the signal's exit shares.

    The keys ``exit_0`` and so on are the fixed depths but the last, which is ``full``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FixedDepth]

    full: FixedDepth
    signal: Quality
    random: Quality
    loss_oracle: Quality
    gain_oracle: Quality

    @property
    def fixed(self) -> list[FixedDepth]:
        """Of every exit but full depth."""
        return by_exit(self.__pydantic_extra__)


class Intervals(Record):
    """95 % bootstrap intervals over documents; null where nothing varies or the measure is undefined."""

    ppl: Interval | None
    accuracy: Interval | None
    ppl_increase: Interval | None
    ece: Interval | None
    random_minus_signal_nll: Interval | None
    headroom: Interval | None


class HeldOutPromise(Record):
    """A promised risk, and the evidence for it on held-out calibration text."""

    measure: str
    tolerance: float
    delta: float
    sequences: int
    tested: int
    passed: int
    held_out_risk: float
    p_value: float


class Promise(HeldOutPromise):
    """The same, and how the risk came out on the test split."""

    test_risk: float
    test_interval: Interval | None
    kept: bool


class RoutedMeasures(Quality):
    """The measures of routing on all test tokens."""

    tokens: int
    documents: int
    exit_fraction: dict[str, float]
    layer_saving: float
    flop_saving: float
    bits_per_byte: float | None
    full_bits_per_byte: float | None
    ppl_increase: float
    propagation_nll: float
    """Nats that a token's loss is above what its exit says when none left before."""
    loss_gap: float
    oracle_share: float
    ece: float
    auroc: float | None
    aurc: float


class Routing(RoutedMeasures, MetricsFile):
    """Routing on the test split at the chosen threshold, beside its controls."""

    path = "metrics/routing.json"

    confidence: str
    precision: str
    threshold: dict[str, float]
    inputs: dict[str, str]
    """Digests of the artifacts it was measured on."""
    controls: Controls
    headroom: float | None
    interval: Intervals
    control_tokens: int
    budget: float | None = None
    price: float | None = None
    risk: Promise | None = None


class Timing(MetricsFile):
    """Seconds of the routed pass beside those of full depth; see ``offramp.routing.timing``."""

    path = "metrics/timing.json"

    wall_saving: float
    wall_saving_low: float
    wall_saving_high: float
    skipping_saving: float
    asking_cost: float
    asking_microseconds: float
    full_seconds: float
    routed_seconds: float
    full_tokens_per_second: float
    routed_tokens_per_second: float
    pairs: int
    machine: str


class ReadoutQuality(Record):
    """What one exit says of the tokens, read out in one way, as if none had left before."""

    agreement: float
    agreement_interval: Interval | None
    nll: float
    nll_interval: Interval | None


class BreakEven(Record):
    """Share of tokens that must leave at an exit before asking there pays; null where it never does."""

    flops: float | None
    seconds: float | None
    asking_seconds: float
    """Share by which a pass in which every token is asked there takes longer."""


class ExitWorth(Record):
    """What one exit is worth."""

    exit: int
    layers: int
    """Layers that a token has run when it gets there."""
    flop_saving: float
    """Of a token that leaves there."""
    readouts: dict[str, ReadoutQuality]
    """raw (the last exit's readout), tuned (the exit's own), or both."""
    break_even: dict[str, BreakEven] | None = None
    """By what a signal looks at: state or readout. Not of full depth."""


class Bound(Record):
    """What an oracle makes of all tokens."""

    flop_saving: float
    """1 - FLOPs of the exits taken / FLOPs at full depth."""
    ppl: float
    """At the exits taken."""


class OracleBounds(Record):
    """What oracles save; see ``offramp.analysis.oracle``."""

    least_loss: Bound
    same_ppl: Bound
    small_rise: Bound
    same_prediction: Bound


class NllRise(Record):
    nll_rise: float
    """Nats per token."""
    interval: Interval | None


class KeptFirst(Record):
    """Of sequences whose first position may leave, and of those where it stays."""

    keep_first_0: NllRise
    keep_first_1: NllRise


class StatePropagation(Record):
    """What it costs the other tokens when half of them have left, by ``routing.kv``."""

    propagate: KeptFirst
    drop: KeptFirst


class TimedText(Record):
    """The text on which break-even was timed: so many batches, of so many tokens each."""

    rounds: int
    tokens: int
    machine: str


class Advice(Record):
    verdict: str
    sentence: str
    propagation: str


class Suitability(MetricsFile):
    """Whether early exit is worth it, and why."""

    path = "metrics/suitability.json"

    model: str
    precision: str
    window: int
    tokens: int
    sequences: int
    exits: dict[str, ExitWorth]
    oracle: dict[str, OracleBounds]
    """By how the exits are read out: raw, tuned, or both."""
    state_propagation: StatePropagation
    timing: TimedText
    advice: Advice


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


class LossShare(TableRow):
    """Share of a split's tokens whose loss at an exit lies in a bin around ``loss``."""

    path = "metrics/plots/loss_distribution.csv"

    split: str
    exit: int
    loss: float
    share: float


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


class CurvePoint(TableRow):
    """A signal or a control, executed on test windows at an exit fraction."""

    path = "metrics/plots/threshold_curve.csv"

    signal: str
    fraction: float
    """Share of the tokens arriving at each exit that leave there."""
    threshold: float | None
    shallow_ratio: float
    ppl: float
    accuracy: float
    agreement: float
    layer_saving: float
    flop_saving: float
    headroom: float | None


class ReliabilityBin(TableRow):
    """Tokens that reached an exit with about the same confidence."""

    path = "metrics/plots/reliability.csv"

    exit: int
    confidence: float
    agreement: float
    tokens: int


class PositionShare(TableRow):
    """Share of the tokens at a position of the window that take an exit."""

    path = "metrics/plots/exits_by_position.csv"

    position: int
    exit: int
    share: float


METRICS_FILES: tuple[type[MetricsFile], ...] = (
    Corpus,
    Pretraining,
    Collected,
    FittedExits,
    Routing,
    Timing,
    Suitability,
)
TABLES: tuple[type[TableRow], ...] = (
    LearningCurve,
    LossShare,
    FitEpoch,
    ThresholdEffect,
    CurvePoint,
    ReliabilityBin,
    PositionShare,
)


def _may_be_none(row: type[TableRow], column: str) -> bool:
    field = row.model_fields.get(column)
    return field is not None and NoneType in get_args(field.annotation)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; run `dvc repro` to make it") from None
    except UnicodeDecodeError:
        raise _damaged(file, "is not a text file") from None


def _ill_shaped(file: Path, place: str, error: ValidationError) -> UserError:
    problem = error.errors()[0]
    field = ".".join(map(str, problem["loc"])) or "its contents"
    more = f" ({error.error_count() - 1} more like it)" if error.error_count() > 1 else ""
    return _damaged(file, f"has another shape than expected: {place}{field}: {problem['msg']}{more}")


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} {what}; delete it and run `dvc repro` to make it again")
