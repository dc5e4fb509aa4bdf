"""What may suffer, how much, and the threshold for it: chosen on calibration text, checked on test text.

Nothing is executed: losses, predictions and confidences of every exit are looked up in cached states, as if
no token had left before. What propagation adds is measured where a threshold is executed (stage evaluate).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.params import Routing as RoutingParams
from offramp.results.routing import Aim, Allowance
from offramp.routing.cost import exit_costs
from offramp.routing.policies import Scorer
from offramp.routing.split import CachedSplit
from offramp.routing.thresholds import HeldOut, sweep
from offramp.states.store import States

ALLOWED = (0.005, 0.01, 0.02, 0.05)
"""Relative rises in perplexity, and shares of predictions that are not those of full depth."""
THRESHOLDS = np.arange(1001) / 1000
"""Those looked at; three digits are enough to type."""
PARTS = ("select", "guarantee")
"""Calibration tokens that no classifier was fitted on."""


class Effects(NamedTuple):
    """What thresholds do to a text, (T,) each."""

    shallow_ratio: np.ndarray
    ppl_increase: np.ndarray
    agreement: np.ndarray
    flop_saving: np.ndarray


def allowances(
    exits: Exits,
    scorers: Mapping[str, Scorer],
    states: States,
    model: Blockwise,
    window: int,
    settings: RoutingParams,
) -> list[Allowance]:
    """Rows of allowances.csv: per signal, aim and allowance the threshold that saves most FLOPs.

    It is chosen on the held-out parts of the calibration text; ``states`` are those of the test split, on
    which the threshold that was chosen is looked up. FLOPs are those of ``routing.cost.exit_costs``.
    """
    test = CachedSplit.of(states)
    free = test.position >= settings.keep_first
    test_loss, test_argmax = np.stack(test.loss)[:, free], np.stack(test.argmax)[:, free]
    rows = []
    for name, scorer in scorers.items():
        costs = np.array(exit_costs(model, window, scorer.reads_out, scorer.flops_per_token, kv=settings.kv))
        parts = [HeldOut(**exits.held_out(name, part, settings.keep_first)) for part in PARTS]
        confidence, loss, argmax = (
            np.concatenate([getattr(part, field) for part in parts], axis=1)
            for field in ("confidence", "loss", "argmax")
        )
        known = effects(confidence, loss, argmax, costs, THRESHOLDS)
        suffers: dict[Aim, np.ndarray] = {"ppl": known.ppl_increase, "agreement": 1 - known.agreement}
        chosen = [
            (aim, allowed, best(suffered, known.flop_saving, allowed))
            for aim, suffered in suffers.items()
            for allowed in ALLOWED
        ]
        thresholds = THRESHOLDS[[place for _, _, place in chosen]]
        fresh = effects(scorer.on_cached(states)[:, free], test_loss, test_argmax, costs, thresholds)
        rows += [
            Allowance(
                signal=name,
                aim=aim,
                allowed=allowed,
                threshold=float(THRESHOLDS[place]),
                **{key: float(values[place]) for key, values in known._asdict().items()},
                full_ppl=float(np.exp(loss[-1].mean(dtype=np.float64))),
                tokens=loss.shape[1],
                **{f"test_{key}": float(values[row]) for key, values in fresh._asdict().items()},
                test_tokens=test_loss.shape[1],
            )
            for row, (aim, allowed, place) in enumerate(chosen)
        ]
    return rows


def best(suffered: np.ndarray, flop_saving: np.ndarray, allowed: float) -> int:
    """The place of the threshold that saves most FLOPs among those where at most ``allowed`` is suffered.

    Both are (T,), by rising threshold. Of equal ones it is the highest, at which fewest tokens leave. The
    last, at which nobody leaves, is the answer where no other saves anything.
    """
    saving = np.where(suffered <= allowed, flop_saving, -np.inf)
    place = len(saving) - 1 - int(np.argmax(saving[::-1]))
    return place if saving[place] > 0 else len(saving) - 1


def effects(
    confidence: np.ndarray, loss: np.ndarray, argmax: np.ndarray, costs: np.ndarray, thresholds: np.ndarray
) -> Effects:
    """What ``thresholds`` (T,) do to N tokens of K exits, looked up.

    confidence (K-1, N), loss (K, N) nats, argmax (K, N), costs (K,) as shares of the full-depth pass.
    """
    agrees = (argmax == argmax[-1]).astype(np.float32)
    means = sweep(confidence, {"loss": loss, "agreement": agrees}, thresholds)
    shares = means["exit_fraction"]
    full = loss[-1].sum(dtype=np.float64) / loss.shape[1]
    return Effects(
        shallow_ratio=1 - shares[:, -1],
        ppl_increase=np.expm1(means["loss"] - full),
        agreement=means["agreement"],
        flop_saving=1 - shares @ costs,
    )
