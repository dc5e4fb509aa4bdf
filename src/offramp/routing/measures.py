"""The measures of early exit on the test split: what routed tokens are predicted like, and what they cost.

Everything here reads a split that was run (``routing.split``) and nothing runs one. Shapes: N tokens, K
exits.
"""

from __future__ import annotations

import numpy as np

from offramp.corpus.token_bytes import bits_per_byte
from offramp.exits.calibration import expected_calibration_error, reliability, resampled_calibration_error
from offramp.exits.ranking import aurc, auroc, loss_gap, most_confident
from offramp.exits.risk import token_risk
from offramp.models.blockwise import Blockwise
from offramp.params import Routing as RoutingParams
from offramp.results.routing import (
    HeldOutPromise,
    PositionShare,
    Promise,
    Quality,
    ReliabilityBin,
    RoutedMeasures,
)
from offramp.results.shape import Interval, exit_key
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.split import CachedSplit, RoutedSplit
from offramp.states.resampling import GroupSums, interval


def quality(
    loss: np.ndarray,
    argmax: np.ndarray,
    target: np.ndarray,
    full_argmax: np.ndarray,
    early: np.ndarray | bool,
) -> Quality:
    """Quality of tokens whose exits say ``loss`` and ``argmax`` (N,); ``early`` (N,) are those that left."""
    return Quality(
        ppl=perplexity(loss),
        accuracy=float((argmax == target).mean()),
        agreement=float((argmax == full_argmax).mean()),
        shallow_ratio=float(np.mean(early)),
    )


def perplexity(loss: np.ndarray) -> float:
    """exp of the mean loss (N,), summed in double precision."""
    return float(np.exp(loss.mean(dtype=np.float64)))


def routed_measures(
    model: Blockwise,
    routed: RoutedSplit,
    cached: CachedSplit,
    *,
    confidence: np.ndarray,
    decision_flops: int,
    window: int,
    bytes_of_token: np.ndarray,
) -> RoutedMeasures:
    """The measures of a split that was routed whole.

    confidence (N,) is that of the first exit, as cached; ``bytes_of_token`` (V,) are the bytes of text each
    token stands for, see ``corpus.token_bytes``. ``ece``, ``auroc``, ``aurc``, ``loss_gap`` and
    ``oracle_share`` judge the confidence of the first exit, where every token is asked; auroc and aurc as a
    ranking of "leaving here is right" (agrees with full depth), since calibrated scores can still rank badly.
    """
    last, first_loss, full_loss = cached.last, cached.loss[0], cached.loss[cached.last]
    half = len(confidence) // 2
    gap = loss_gap(most_confident(confidence, half), first_loss)
    oracle_gap = loss_gap(most_confident(-first_loss, half), first_loss)
    agrees = cached.argmax[0] == cached.argmax[last]
    ranking = auroc(confidence, agrees)
    flops = executed_flops(model, routed.work, decision_flops)
    as_if_none_left = np.take_along_axis(np.stack(cached.loss), routed.exit[None], axis=0)[0]
    mean = routed.loss.mean(dtype=np.float64)

    def bits(loss: np.ndarray) -> float | None:
        return bits_per_byte(float(loss.sum(dtype=np.float64)), float(bytes_of_token[cached.target].sum()))

    overall = quality(routed.loss, routed.argmax, cached.target, cached.argmax[last], routed.exit < last)
    return RoutedMeasures(
        **overall.to_json(),
        tokens=len(routed.loss),
        documents=len(np.unique(cached.document)),
        exit_fraction={exit_key(exit): float((routed.exit == exit).mean()) for exit in range(last + 1)},
        layer_saving=layer_saving(model, routed.work),
        flop_saving=1 - flops / full_depth_flops(model, routed.work.tokens, window),
        bits_per_byte=bits(routed.loss),
        full_bits_per_byte=bits(full_loss),
        ppl_increase=float(np.exp(mean - full_loss.mean(dtype=np.float64)) - 1),
        propagation_nll=float(mean - as_if_none_left.mean(dtype=np.float64)),
        loss_gap=gap,
        oracle_share=gap / oracle_gap,
        ece=expected_calibration_error(confidence, agrees),
        auroc=None if np.isnan(ranking) else ranking,
        aurc=aurc(confidence, ~agrees),
    )


def measure_intervals(
    routed: RoutedSplit,
    cached: CachedSplit,
    confidence: np.ndarray,
    token_flops: np.ndarray,
    flop_saving: float,
    settings: RoutingParams,
) -> dict[str, Interval | None]:
    """95 % bootstrap intervals over documents: of ppl, accuracy, ppl_increase, flop_saving and ece.

    Resampled for FLOPs is ``token_flops`` (N,), what every token's exit costs as a share of full depth (see
    ``routing.cost.exit_costs``); the interval lies around ``flop_saving``, which counts what was executed.
    """
    columns = {
        "loss": routed.loss,
        "full": cached.loss[cached.last],
        "correct": routed.argmax == cached.target,
        "flops": token_flops,
    }
    draws = GroupSums(cached.document, columns).resample(settings.bootstrap, settings.seed)
    agrees = cached.argmax[0] == cached.argmax[cached.last]
    errors = resampled_calibration_error(
        confidence, agrees, cached.document, settings.bootstrap, settings.seed
    )
    return {
        "ppl": interval(np.exp(draws["loss"])),
        "accuracy": interval(draws["correct"]),
        "ppl_increase": interval(np.exp(draws["loss"] - draws["full"]) - 1),
        "flop_saving": interval(flop_saving + token_flops.mean() - draws["flops"]),
        "ece": interval(errors),
    }


def kept_promise(
    promise: HeldOutPromise, routed: RoutedSplit, cached: CachedSplit, settings: RoutingParams
) -> Promise:
    """A promised risk with what came of it on the test split, executed.

    It is parted into what tokens add that leave, which is what was promised, and what propagation adds.
    """
    loss = np.stack((routed.loss, cached.loss[cached.last]))
    argmax = np.stack((routed.argmax, cached.argmax[cached.last]))
    as_if_none_left = token_risk(
        promise.measure, np.stack(cached.loss), np.stack(cached.argmax), cached.target
    )
    risks = {
        "all": token_risk(promise.measure, loss, argmax, cached.target)[0],
        "leavers": np.take_along_axis(as_if_none_left, routed.exit[None], axis=0)[0],
    }
    draws = GroupSums(cached.document, risks).resample(settings.bootstrap, settings.seed)
    mean, leavers = (float(risks[name].mean()) for name in ("all", "leavers"))
    return Promise(
        **promise.to_json(),
        test_risk=mean,
        test_interval=interval(draws["all"]),
        leavers_risk=leavers,
        leavers_interval=interval(draws["leavers"]),
        propagation_risk=mean - leavers,
        propagation_interval=interval(draws["all"] - draws["leavers"]),
        kept=mean <= promise.tolerance,
    )


def reliability_bins(
    routed: RoutedSplit, cached: CachedSplit, confidence: np.ndarray
) -> list[ReliabilityBin]:
    """Confidence (K-1, N) beside agreement with full depth, per exit, over the tokens that arrived there."""
    rows, full = [], cached.argmax[cached.last]
    for exit in range(cached.last):
        arrived = routed.exit >= exit
        if arrived.any():
            agrees = cached.argmax[exit][arrived] == full[arrived]
            rows += [
                ReliabilityBin(
                    exit=exit,
                    confidence=values["confidence"],
                    agreement=values["agreement"],
                    tokens=int(values["tokens"]),
                )
                for values in reliability(confidence[exit][arrived], agrees)
            ]
    return rows


def position_shares(exits: np.ndarray, window: int, last: int) -> list[PositionShare]:
    """Share of the tokens that take each exit (N,), by their position in the window."""
    table = exits.reshape(-1, window)
    return [
        PositionShare(position=position, exit=exit, share=float((table[:, position] == exit).mean()))
        for exit in range(last + 1)
        for position in range(window)
    ]
