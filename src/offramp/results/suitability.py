"""Results of stage suitability, and of the same measurement of a checkpoint."""

from __future__ import annotations

from typing import Literal

from offramp.results.shape import Interval, MetricsFile, Record, by_exit
from offramp.vocabulary import RAW, TUNED

LEAST_SQUARES = "least_squares"
READOUTS = (TUNED, LEAST_SQUARES, RAW)
"""How an exit is read out: as it was trained to be; through the last exit's norm, an affine map fitted to
full depth's normed states, and the head; or through the last exit's norm and head alone. The first that a
model has counts."""


class Bound(Record):
    """What an oracle saves."""

    flop_saving: float
    """1 - FLOPs of the exits taken / FLOPs at full depth."""
    ppl: float
    """At the exits taken."""


class Attainable(Bound):
    """What the divergence oracle saves, which knows what depth would change, beside random exits."""

    interval: Interval | None
    """Of ``flop_saving``."""
    random_saving: float
    """What random exits save at the same rise in perplexity."""
    lead_interval: Interval | None
    """Of ``lead``."""

    @property
    def lead(self) -> float:
        """What knowing saves more than chance does."""
        return self.flop_saving - self.random_saving


class AttainableBounds(Record):
    """The attainable saving where perplexity rises by at most 1, 3 and 5 %."""

    rise_1: Attainable
    rise_3: Attainable
    rise_5: Attainable


class ReadoutQuality(Record):
    """What one exit says of the tokens, read out in one way, as if none had left before."""

    agreement: float
    agreement_interval: Interval | None
    nll: float
    nll_interval: Interval | None
    can_leave: float | None = None
    """Largest share of tokens that the divergence oracle lets go there, at 1 % more perplexity and with that
    exit alone in use. Not of full depth."""
    attainable: AttainableBounds | None = None
    """What it saves with that exit alone in use. Not of full depth."""


class BreakEven(Record):
    """Share of tokens that must leave at an exit before asking there pays, by FLOPs and by the clock.

    Both are of one signal (``Suitability.looks_at``). Intervals are of medians over batches, 95 %.
    """

    flops: float | None
    """Null where it never does."""
    clock: Literal["shown", "never", "inconclusive"]
    """Whether the clock shows a share, or that leaving never pays. It is inconclusive where an interval holds
    the value that decides: no cost of asking, no time saved by leaving, or all tokens as the share."""
    seconds: float | None
    """The share by the clock; null unless shown."""
    seconds_interval: Interval | None
    asking_seconds: float
    """Share by which a pass in which every token is asked there takes longer. A negative one is noise."""
    asking_interval: Interval | None
    """Null for too few batches."""


class ExitWorth(Record):
    """What one exit is worth."""

    exit: int
    layers: int
    """Layers that a token has run when it gets there."""
    flop_saving: float
    """Of a token that leaves there."""
    readouts: dict[str, ReadoutQuality]
    """By how the exit is read out: see READOUTS."""
    break_even: BreakEven | None = None
    """Not of full depth."""


class GainBounds(Record):
    """What the gain oracle saves, which knows the next token: more than any signal can."""

    least_loss: Bound
    same_ppl: Bound
    small_rise: Bound
    same_prediction: Bound


class OracleBounds(Record):
    """What oracles save; see ``offramp.analysis.oracle``."""

    gain: GainBounds
    attainable: AttainableBounds


class NllRise(Record):
    """How much worse other tokens are predicted."""

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
    seconds: Interval | None = None
    """Least and most of the plain pass over a batch: how far they differ is how far the clock can be trusted.
    """


class Advice(Record):
    """What to do, in a word and in sentences."""

    verdict: str
    sentence: str
    clock: str
    """What this machine's clock says; it has no part in the verdict."""
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
    """By how the exits are read out: see READOUTS."""
    state_propagation: StatePropagation
    timing: TimedText
    advice: Advice
    looks_at: str
    """What the signal looks at whose asking is weighed: one of ``vocabulary.LOOKS_AT``."""
    grouped_by: str = "windows"
    """What intervals resample: ``documents``, ``stretches`` of them, or ``windows``."""

    @property
    def rows(self) -> list[ExitWorth]:
        """The exits in order of depth."""
        return by_exit(self.exits)


class MeasuredText(Record):
    """Where the text comes from that a checkpoint was measured on, and how much of it there was."""

    source: str
    documents: int
    """Measured on."""
    groups: int
    """What intervals resample, as ``grouped_by`` says."""
    fit_documents: int
    """Other documents, or earlier parts of the same: the least-squares exits were fitted on them."""
    fit_tokens: int


class CheckpointSuitability(Suitability):
    """The same of a checkpoint as it is, on a text that is part of no project."""

    path = "suitability.json"

    text: MeasuredText
