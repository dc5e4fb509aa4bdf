"""What the study found: one file per kind of device, studies/metrics/checkpoint.<device>.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offramp.analysis.oracle import RISES
from offramp.results.shape import Interval, Record, file_text, ill_shaped

TIMED_RISE = "rise_1"
"""The rise in perplexity, of ``oracle.RISES``, at which arms are timed."""
SPEED_BAR = 1.15
"""Times the control's speed that are asked of early exit at 1 % more perplexity."""
SPECULATION_BAR = 1.1
"""Times the speed of plain decoding that are asked of self-speculation."""


class ExitQuality(Record):
    """What one exit says of all test tokens, as if none had left before."""

    layers: int
    ppl: float
    ppl_interval: Interval | None
    agreement: float
    """With the arm's own full depth."""


class Reached(Record):
    """What is saved at one rise in perplexity over a reference."""

    flop_saving: float
    """0 where not even full depth stays within the rise: then the reference runs in its place."""
    interval: Interval | None
    reached: bool
    """Whether the arm's full depth, or some exit, stays within the rise at all."""


class Attained(Record):
    """What a signal saves on test text by thresholds that calibration text chose for one rise."""

    signal: str
    rise: str
    thresholds: list[float]
    calibration_saving: float
    calibration_rise: float
    """Executed, on calibration windows."""
    flop_saving: float
    """By the exits taken, asking included."""
    interval: Interval | None
    executed_saving: float
    """By what was executed."""
    ppl: float
    ppl_rise: float
    """Over the control's full depth, as a share."""
    rise_interval: Interval | None
    shallow_ratio: float
    tokens: int
    documents: int


class AtShare(Record):
    """A signal where the same share of arriving tokens leaves at every exit."""

    signal: str
    share: float
    shallow_ratio: float
    ppl: float
    attained: float | None
    """Share of the way from random exits to the divergence oracle."""
    interval: Interval | None


class Clocked(Record):
    """How many times as fast as the control's full depth, pairwise on the same text."""

    speed: float
    interval: Interval | None
    pairs: int
    seconds: float
    """Of the control, median."""
    shallow_ratio: float
    """Share of tokens that left."""


class Drafted(Record):
    """Self-speculation against plain decoding of the same model, at batch 1."""

    exit: int
    """That drafted most."""
    layers: int
    length: int
    """Of its drafts that promised most at the end."""
    vocabulary: int
    """Tokens that could be drafted."""
    speed: float
    interval: Interval | None
    pairs: int
    accepted: int
    """While timed."""
    drafted: int
    pays: bool
    """Whether it went on drafting to the end."""
    same: bool
    """Whether all tokens were those of plain decoding."""


class Measures(Record):
    """What was measured of one arm."""

    tokens: int
    documents: int
    exits: list[ExitQuality]
    """Full depth last."""
    against_control: dict[str, Reached]
    """Attainable, by rise over the control's full depth."""
    against_itself: dict[str, Reached]
    """Attainable, by rise over the arm's own full depth."""
    attained: list[Attained]
    at_shares: list[AtShare]
    chosen: Attained | None
    """What is timed: of the signals at 1 %, the one that saves most on calibration text."""
    scoring: Clocked | None
    decoding: Clocked | None
    drafting: Drafted | None
    machine: str
    commit: str | None
    """Of the code that measured it; None outside a repository."""


class Ran(Record):
    """Seconds and memory of a unit of work."""

    seconds: float
    memory_gb: float
    resumed: bool
    ended: str


class ArmResults(Record):
    """An arm with what it took."""

    name: str
    says: str
    trained_tokens: int
    best_step: int
    steps: int
    ran: dict[str, Ran]
    measures: Measures


class Results(Record):
    """The whole study on one kind of device."""

    device: str
    machine: str
    versions: dict[str, str]
    settings: dict[str, Any]
    look: dict[str, Any]
    precision: dict[str, Any]
    arms: list[ArmResults]
    """Those that are done."""


def first_told(arms: Sequence[ArmResults]) -> ArmResults | None:
    """The arm whose clocks stand for all; None where none was timed.

    Of those that stay within the timed rise on calibration text it is the one that saves most there; of all,
    where none stays. Test text chooses nothing.
    """
    timed = [arm for arm in arms if arm.measures.chosen]

    def merit(arm: ArmResults) -> tuple[bool, float]:
        chosen = arm.measures.chosen
        assert chosen is not None
        return chosen.calibration_rise <= RISES[TIMED_RISE], chosen.calibration_saving

    return max(timed, key=merit, default=None)


def results_path(home: Path, device: str) -> Path:
    return home / "metrics" / f"checkpoint.{device}.json"


def read(file: Path) -> Results | None:
    """The results in a file; None where there are none. UserError for a damaged one."""
    if not file.exists():
        return None
    try:
        return Results.model_validate_json(file_text(file))
    except ValidationError as error:
        raise ill_shaped(file, error) from None
