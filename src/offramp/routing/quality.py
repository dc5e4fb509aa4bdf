"""Thresholds for a rise in perplexity: ``threshold: quality`` of at most ``routing.quality`` per cent.

The candidates are the path of least added loss per FLOP from "nobody leaves" to "all leave at the first exit"
(``routing.thresholds.threshold_path``), one threshold per exit, made from cached states of the calibration
tokens that no classifier was fitted on. Candidates are then executed on windows of that text, propagation
included, and the furthest is taken whose rise stays within what is allowed (``routing.search``).

*Stays within* is said of the upper end of the rise's 95 % interval, paired bootstrap over documents, and not
of the rise: other documents differ by as much, and a rise that just fits on these would be too large on every
second other text. It is no guarantee: the interval is of a dozen documents as a rule, the text to come may be
of another kind, and the candidate is the furthest of several that were looked at. ``threshold: risk`` gives a
guarantee, of what it measures. What was chosen is therefore held against the test split too (``checked``).

Shapes: K exits, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from offramp.corpus.excerpts import LEAST_DOCUMENTS
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.exits.held_out import held_out_text
from offramp.exits.store import Exits
from offramp.params import Routing as RoutingParams
from offramp.results.routing import HeldOutRise, RiseCheck, RoutedMeasures, Verdict
from offramp.results.shape import Interval
from offramp.routing.executor import Executor
from offramp.routing.policies import Scorer, ThresholdPolicy
from offramp.routing.search import Text, furthest, predicted_losses
from offramp.routing.split import FirstBlock, spread_windows
from offramp.routing.thresholds import NOBODY, HeldOut, threshold_path
from offramp.states.resampling import GroupSums, interval


@dataclass(frozen=True)
class Calibration:
    """The calibration split and who runs it."""

    executor: Executor
    windows: TokenWindows


DECAYED = 0.9
"""Of a threshold what is left where it has fallen (``ThresholdPolicy``)."""


class Rise(NamedTuple):
    """How much perplexity is above full depth's, as a share of it."""

    mean: float
    interval: Interval | None

    @property
    def most(self) -> float:
        """The upper end of the interval."""
        return self.interval[1] if self.interval else self.mean


class QualitySearch:
    """The candidates, and the rise in perplexity of those that were executed.

    The tokens measured, N, are those of documents that no classifier was fitted on, in evenly spaced windows.
    """

    def __init__(
        self,
        calibration: Calibration,
        exits: Exits,
        scorer: Scorer,
        costs: np.ndarray,
        settings: RoutingParams,
    ):
        """costs (K,) are those of leaving at each exit, as shares of full depth.

        Of ``settings`` it reads what policies do, ``quality``, ``control_windows`` (so many windows are
        executed), and what the bootstrap needs. UserError where the text is a single window.
        """
        self.calibration, self.scorer, self.settings = calibration, scorer, settings
        self.allowed, self.tried = settings.quality / 100, dict[int, Rise]()
        text, first = held_out_text(exits, scorer.signal), settings.first_exit
        window = calibration.windows.window
        confidence = without_decay(text.confidence, text.position / window, settings.decay)
        may_leave = text.position >= settings.keep_first

        def held_out(rows: np.ndarray) -> HeldOut:
            of_exits = (confidence[:, rows], text.loss[:, rows], text.argmax[:, rows])
            return HeldOut(*of_exits, text.target[rows], text.sequence[rows]).after(first)

        asked = held_out(may_leave)
        self._path = threshold_path(asked, costs[first:], asked.risk("nll_increase"))
        numbers = np.unique(text.sequence)
        if len(numbers) < 2:
            raise UserError(
                "threshold quality: the calibration documents that no classifier was fitted on are a single "
                "window, and the rise needs several; raise corpus.calibration_fraction"
            )
        chosen = numbers[spread_windows(len(numbers), settings.control_windows).numpy()]
        rows = np.isin(text.sequence, chosen)
        executed = held_out(rows)
        self._full = executed.loss[-1]
        self._predicted = predicted_losses(executed.confidence, executed.loss, may_leave[rows], self._path)
        self._by_document = len(np.unique(text.document[rows])) >= LEAST_DOCUMENTS
        self._group = (text.document if self._by_document else text.sequence)[rows]
        self._measured = np.searchsorted(chosen, text.sequence[rows]) * window + text.position[rows]
        executor = calibration.executor
        self._text = Text(executor, calibration.windows, torch.from_numpy(chosen), settings.batch_size)
        self._first = None if scorer.reads_before else FirstBlock(executor)

    def thresholds(self, place: int) -> list[float]:
        """(K-1,) of the candidate at that place of the path; at place 0 nobody leaves."""
        falls = 1.0 if self.settings.decay is None else DECAYED
        return [NOBODY] * self.settings.first_exit + [value / falls for value in self._path[place]]

    def rise(self, place: int) -> Rise:
        """The rise of a candidate over full depth, by running it."""
        if place not in self.tried:
            settings = self.settings
            policy = ThresholdPolicy(
                self.calibration.executor.model,
                self.scorer,
                self.thresholds(place),
                first=settings.first_exit,
                decay=settings.decay,
                keep_first=settings.keep_first,
            )
            routed = self._text.run(policy, f"threshold quality, try {len(self.tried) + 1}", self._first)
            added = routed.loss[self._measured] - self._full
            draws = GroupSums(self._group, {"added": added}).resample(settings.bootstrap, settings.seed)
            mean = float(np.expm1(added.mean(dtype=np.float64)))
            self.tried[place] = Rise(mean, interval(np.expm1(draws["added"])))
        return self.tried[place]

    def choose(self) -> tuple[list[float], HeldOutRise]:
        """The thresholds (K-1,), and what came of them; nobody leaves where no candidate is within."""
        limit = float(np.log1p(self.allowed) + self._full.mean(dtype=np.float64))
        place = furthest(self._predicted, limit, lambda place: self.rise(place).most <= self.allowed)
        reached = self.rise(place) if place else Rise(0.0, None)
        return self.thresholds(place), HeldOutRise(
            allowed=self.allowed,
            rise=reached.mean,
            interval=reached.interval,
            tokens=len(self._full),
            groups=len(np.unique(self._group)),
            grouped_by="documents" if self._by_document else "windows",
            candidates=len(self._path) - 1,
            executed=len(self.tried),
            place=place,
        )


def without_decay(confidence: np.ndarray, place: np.ndarray, decay: float | None) -> np.ndarray:
    """Confidences (K-1, N) that reach 0.9 t where the given ones reach the decayed threshold t.

    place (N,) is the position of every token as a share of the window; see ``ThresholdPolicy``.
    """
    if decay is None:
        return confidence
    return (confidence - (1 - DECAYED) * np.exp(-decay * place)).astype(confidence.dtype)


def checked(promise: HeldOutRise, measures: RoutedMeasures, bounds: Interval | None) -> RiseCheck:
    """What was allowed, held against the rise on test text and its interval.

    Without an interval nothing is established, unless nobody leaves.
    """
    low, high = bounds or (-np.inf, np.inf)
    verdict: Verdict = "not established"
    if high <= promise.allowed or measures.shallow_ratio == 0:
        verdict = "kept"
    elif low > promise.allowed:
        verdict = "not kept"
    return RiseCheck(
        **promise.to_json(), test_rise=measures.ppl_increase, test_interval=bounds, verdict=verdict
    )
