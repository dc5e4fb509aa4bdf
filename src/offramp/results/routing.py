"""Results of the stages sweep and evaluate."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from offramp.results.shape import Interval, MetricsFile, Record, TableRow, by_exit

Aim = Literal["ppl", "agreement"]
"""What early exit may spoil: perplexity, or agreement with full depth."""
Verdict = Literal["kept", "not kept", "not established"]
"""Of what was allowed, by test text."""


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
    """What routing is held against, on the same tokens.

    Fixed depths are measured on all tokens, the others on control tokens at the signal's exit shares; random
    exits are an expectation over draws.
    The keys ``exit_0`` and so on are the fixed depths but the last, which is ``full``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FixedDepth]

    full: FixedDepth
    signal: Quality
    random: Quality
    loss_oracle: Quality
    divergence_oracle: Quality
    gain_oracle: Quality

    def named(self, name: str) -> Quality:
        """The control that ``vocabulary.CONTROLS`` knows by that name."""
        return getattr(self, name)

    @property
    def fixed(self) -> list[FixedDepth]:
        """Of every exit but full depth."""
        return by_exit(self.__pydantic_extra__)


class Intervals(Record):
    """95 % bootstrap intervals over documents; null where nothing varies or the measure is undefined."""

    ppl: Interval | None
    accuracy: Interval | None
    ppl_increase: Interval | None
    flop_saving: Interval | None
    ece: Interval | None
    random_minus_signal_nll: Interval | None
    headroom: Interval | None
    attained: Interval | None


class HeldOutPromise(Record):
    """A promised risk, and the evidence for it on held-out calibration text.

    What is promised, as what ``held_out_risk`` measures, is the risk that tokens add which leave. What others
    find in place of them comes on top (``Promise.propagation_risk``).
    """

    measure: str
    tolerance: float
    delta: float
    sequences: int
    tested: int
    passed: int
    held_out_risk: float
    p_value: float


class Promise(HeldOutPromise):
    """The same, and how the risk came out on the test split, in two parts that add up.

    Intervals are 95 %, bootstrap over documents.
    """

    test_risk: float
    """Of all tokens as they were routed."""
    test_interval: Interval | None
    leavers_risk: float
    """What is promised of it: the risk of the exits taken, as if none had left before."""
    leavers_interval: Interval | None
    propagation_risk: float
    """The rest, which is not promised.

    Tokens that go on find something else in place of those that left (``routing.kv``), and so are predicted
    otherwise, at full depth or where they leave later.
    """
    propagation_interval: Interval | None
    kept: bool
    """Whether ``test_risk``, both parts, is within the tolerance."""


class HeldOutRise(Record):
    """How much perplexity may rise over full depth, and how far it did on held-out calibration text.

    The thresholds were executed on it, propagation included. Rises are shares of full depth's perplexity.
    """

    allowed: float
    rise: float
    """Of the thresholds in force."""
    interval: Interval | None
    """95 %, paired bootstrap over groups; its upper end is within what is allowed. Null where nobody leaves.
    """
    tokens: int
    groups: int
    grouped_by: Literal["documents", "windows"]
    """What the groups are: documents, or windows where these are too few."""
    candidates: int
    executed: int
    """Of the candidates."""
    place: int
    """Of the thresholds in force among the candidates; 0: none stayed within, and nobody leaves."""


class RiseCheck(HeldOutRise):
    """The same, and the rise on the test split, which had no part in the choice."""

    test_rise: float
    test_interval: Interval | None
    """95 %, paired bootstrap over documents."""
    verdict: Verdict
    """Where the interval on test text lies: within what is allowed, above it, or on both sides."""


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
    """The signal's share of the way from random exits to the gain oracle, which knows the next token."""
    attained: float | None
    """Its share of the way to the divergence oracle: of what can be had without knowing the next token."""
    interval: Intervals
    token_flop_saving: float
    """``flop_saving`` counted token by token (``routing.cost.exit_costs``), as thresholds are chosen by: what
    batches pay for padding, and sequences for tokens carried through later (``recompute``), comes on top."""
    control_tokens: int
    budget: float | None = None
    price: float | None = None
    risk: Promise | None = None
    quality: RiseCheck | None = None


class Origin(Record):
    """When a result was measured, at which state of the code, and where it is logged.

    It stands in a file that differs between equal runs anyway, so that all that is made from it, as the
    report, depends on files alone.
    """

    date: str
    """Day and minute, UTC."""
    commit: str | None
    """HEAD's hash; None outside git and before the first commit."""
    changed: bool
    """Whether code or pipeline differed from that commit."""
    dvc_experiment: str | None
    """None for a plain ``dvc repro``."""
    mlflow_experiment: str
    mlflow_run: str
    """The name by which stage track logs the result; an equal one that MLflow has keeps the name it has."""


class Timing(MetricsFile):
    """Seconds of the routed pass beside those of full depth; see ``offramp.routing.timing``."""

    path = "metrics/timing.json"

    wall_saving: float
    wall_saving_interval: Interval
    """95 %, from the order of the pairs."""
    skipping_saving: float
    full_seconds: float
    routed_seconds: float
    full_tokens_per_second: float
    routed_tokens_per_second: float
    pairs: int
    machine: str
    origin: Origin


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
    attained: float | None
    """With its 95 % bootstrap interval over documents."""
    attained_low: float | None
    attained_high: float | None
    tokens: int
    """On which the point stands."""


class Allowance(TableRow):
    """The threshold that saves most FLOPs within an allowance, by calibration text, and what it does on test.

    The threshold is common to all exits. Both texts are looked up in cached states, as if no token had left
    before (no state propagation), and stand for tokens that may leave (``routing.keep_first``).
    """

    path = "metrics/plots/allowances.csv"

    signal: str
    aim: Aim
    """What may suffer: perplexity, or agreement with full depth."""
    allowed: float
    """The largest relative rise in perplexity, or share of predictions that are not those of full depth."""
    threshold: float
    """1 if nobody may leave, or if leaving saves less than asking costs."""
    shallow_ratio: float
    ppl_increase: float
    agreement: float
    flop_saving: float
    full_ppl: float
    """Of full depth, on the same calibration tokens."""
    tokens: int
    test_shallow_ratio: float
    """On test tokens at the same threshold, which they had no part in choosing; as all that follow."""
    test_ppl_increase: float
    test_agreement: float
    test_flop_saving: float
    test_tokens: int


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
