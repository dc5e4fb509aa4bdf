"""Who decides that a token may leave? Every signal, label and input of an exit classifier, against chance and
the oracle.

A question that no report asked, so there is no published protocol. Models of two exits trained block by block
and jointly, of every random seed: at equal exit shares of test documents, what share a signal attains of what
can be attained without knowing the next token (the divergence oracle), and what share of the gain oracle's
headroom. Models of three exits: one price for predicted gain per FLOP against one calibrated threshold for
all exits, at equal FLOPs. Everything that is fitted is fitted on calibration
documents. Shapes: N tokens, K exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from offramp.artifacts.artifact import Artifact
from offramp.exits.calibration import fit_calibrator, gain_slope
from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import KINDS, agreement, label
from offramp.routing.cost import exit_costs
from offramp.routing.thresholds import exits_taken
from offramp.training.exits import PARTS, split_calibration
from studies.common.exit_choice import (
    EASY_LOSS,
    VIEWS,
    Views,
    divergences,
    fit_view,
    losses,
    standings,
    statistic_scores,
)
from studies.common.product_path import Recipe, SmallModel
from studies.common.results import over_seeds
from studies.common.study import Job, Outcome
from studies.common.switch_models import recipe, switch_data, switch_model
from studies.common.tables import Values
from studies.common.workers import run_arms

THREE_EXITS = "joint, three exits"
ARMS = ("block-wise", "joint", THREE_EXITS)
"""How the models are trained; of ``switch_models.SWITCHES``. Three exits are measured on the addresses
alone."""

SAVINGS = (0.1, 0.2, 0.3, 0.4)
"""Shares of the FLOPs at which rules for three exits are compared."""

WIDTHS = {"linear": [], "MLP-2": [128], "MLP-3": [128, 128], "wide": [256]}
"""Hidden widths of the classifiers of the gain that are compared."""


def corrected(job: Job) -> Outcome:
    """Every arm and random seed, and the tables and sentences that intervals over random seeds support."""
    sizes, fitting = job.shared["switch_models"], job.shared["exit_classifier"]
    arms = [arm for arm in job.arms if arm != THREE_EXITS or job.text.corpus == "sotu"]
    if not arms:
        return Outcome([])
    data = switch_data(job.text, job.cache, sizes)
    jobs = [
        (recipe(arm, seed, job.cache, sizes), data, fitting, job.settings)
        for arm in arms
        for seed in job.seeds
    ]
    measured = iter(run_arms(make_and_measure, jobs, job.processes))
    rows: list[Values] = [{} for _ in job.seeds]
    for arm in arms:
        for row in rows:
            row |= {f"{arm}:{key}": value for key, value in next(measured).items()}
    if len(rows) < 2:
        return Outcome(rows)
    figures, sentences = report(over_seeds(rows), arms, job.settings["fractions"], len(rows))
    return Outcome(rows, figures, sentences)


def make_and_measure(
    recipe: Recipe, data: Artifact, fitting: Mapping[str, Any], settings: Mapping[str, Any]
) -> Values:
    """One arm and random seed, in a process of its own."""
    return measure(switch_model(recipe, data), fitting, settings)


def measure(model: SmallModel, fitting: Mapping[str, Any], settings: Mapping[str, Any]) -> Values:
    """All values of one model; classifiers are fitted as ``fitting`` says (section exit_classifier of the
    shared settings)."""
    if model.test.num_exits > 2:
        return three_exits(model, fitting, settings["prices"])
    return two_exits(model, fitting, settings["fractions"])


def two_exits(model: SmallModel, fitting: Mapping[str, Any], shares: Sequence[float]) -> Values:
    """Keys ``<signal>.attained.<share>``, ``.headroom.<share>`` and ``.nll.<share>``, and ``ppl_0``,
    ``ppl_full``.

    Signals: the statistics, ``label <label>``, ``view <inputs>`` and ``width <name>`` of a gain classifier,
    oracles of the loss, the divergence and the true gain. ``view <inputs> minus state.attained.<share>``:
    what other inputs add to the state, paired. ``gain on divergence``: the slope of the true gain on the
    divergence, 1 if full depth is calibrated against the exit.
    """
    loss, divergence = losses(model.test), divergences(model.test)
    scores = dict(statistic_scores(model.test, 0))
    views, converged = Views(model, 0), []

    def learned(
        name: str, view: str, hidden: Sequence[int], first: ExitClassifier | None = None
    ) -> tuple[np.ndarray, ExitClassifier]:
        classifier, ended = fit_view(model, views, view, name, hidden, fitting, first)
        converged.append(ended)
        with torch.no_grad():
            return classifier(views.get(model.test, view, first)).numpy(), classifier

    for name in KINDS:
        scores[f"label {name}"], classifier = learned(name, "state", fitting["hidden"])
        if name == "gain":
            first = classifier
    for view in VIEWS:
        if view != "state":
            scores[f"view {view}"], _ = learned("gain", view, fitting["hidden"], first)
    for width, hidden in WIDTHS.items():
        if hidden != fitting["hidden"]:
            scores[f"width {width}"], _ = learned("gain", "state", hidden)
    gain = loss[0] - loss[-1]
    scores |= {"loss oracle": -loss[0], "divergence oracle": -divergence[0], "gain oracle": -gain}
    out: Values = {
        f"{name}.{key}": value
        for name, score in scores.items()
        for key, value in standings(score, loss, divergence, shares).items()
    }
    for share in shares:
        out[f"random.nll.{share}"] = (1 - share) * loss[-1].mean() + share * loss[0].mean()
        for view in VIEWS:
            if view != "state":
                added = out[f"view {view}.attained.{share}"] - out[f"label gain.attained.{share}"]
                out[f"view {view} minus state.attained.{share}"] = added
    return out | {
        "gain on divergence": float(gain @ divergence[0] / (divergence[0] @ divergence[0])),
        "ppl_0": float(np.exp(loss[0].mean())),
        "ppl_full": float(np.exp(loss[-1].mean())),
        "converged": float(np.mean(converged)),
    }


def three_exits(model: SmallModel, fitting: Mapping[str, Any], prices: int) -> Values:
    """NLL at equal FLOPs of one price against one calibrated threshold, for classifiers of gain and of
    divergence.

    Keys ``<label>.<rule>.nll.<saving>``: test NLL where the rule saves that share of the FLOPs, interpolated
    along its curve of so many ``prices`` or thresholds; None where the curve does not reach it. ``divergence
    oracle`` and ``gain oracle`` take the exit of least KL, or loss, + price x cost; asking costs them none.
    ``<label>.<rule>.attained.<saving>`` is the rule's share of the way from random exits to the former.
    """
    loss, divergence, lm = losses(model.test), divergences(model.test), model.load()
    last = lm.config.num_blocks - 1
    part = split_calibration(model.calibration.column("document"), model.seed)
    select = part != PARTS.index("fit")
    out: Values = {f"ppl_{exit}": float(np.exp(loss[exit].mean())) for exit in range(last + 1)}
    for name in ("gain", "divergence"):
        gains, confidences, converged = [], [], []
        for exit in range(last):
            views = Views(model, exit)
            classifier, ended = fit_view(model, views, "state", name, fitting["hidden"], fitting)
            converged.append(ended)
            with torch.no_grad():
                score = classifier(views.get(model.calibration, "state")).numpy()[select]
                inputs = views.get(model.test, "state")
                gains.append(classifier.costs(inputs).numpy() * _slopes(model, classifier, exit, select))
                calibrator = fit_calibrator(score, agreement(model.calibration, exit)[select])
                confidences.append(calibrator(classifier(inputs)).numpy())
        costs = np.array(exit_costs(lm, model.test.window, False, classifier.flops))
        curves = {
            "price": [_priced(gains, costs, price) for price in np.geomspace(0.005, 5, prices)],
            "threshold": [
                exits_taken(np.stack(confidences), [threshold] * last)
                for threshold in np.quantile(np.concatenate(confidences), np.linspace(0.01, 0.99, prices))
            ],
        }
        for rule, taken in curves.items():
            saved = np.array([1 - costs[exits].mean() for exits in taken])
            nll = np.array([np.take_along_axis(loss, exits[None], 0).mean() for exits in taken])
            for saving in SAVINGS:
                out[f"{name}.{rule}.nll.{saving}"] = _along(saving, saved, nll)
        for saving in SAVINGS:
            price, threshold = (out[f"{name}.{rule}.nll.{saving}"] for rule in ("price", "threshold"))
            both = price is not None and threshold is not None
            out[f"{name}.price_minus_threshold.{saving}"] = price - threshold if both else None
    undecided = np.array(exit_costs(lm, model.test.window, False, 0))
    for saving in SAVINGS:
        out[f"random.nll.{saving}"] = random = _random(loss, undecided, saving)
        for name, values in (("divergence oracle", divergence), ("gain oracle", loss)):
            out[f"{name}.nll.{saving}"] = _oracle(values, loss, undecided, prices, saving)
        best = out[f"divergence oracle.nll.{saving}"]
        for name in ("gain", "divergence"):
            for rule in ("price", "threshold"):
                nll, attained = out[f"{name}.{rule}.nll.{saving}"], None
                if nll is not None and random is not None and best is not None:
                    attained = (random - nll) / (random - best)
                out[f"{name}.{rule}.attained.{saving}"] = attained
    return out


def _oracle(
    values: np.ndarray, loss: np.ndarray, costs: np.ndarray, prices: int, saving: float
) -> float | None:
    """NLL where every token takes its exit of least value + price x cost and ``saving`` of the FLOPs go.

    values and loss are (K, N); None where no price saves so little.
    """
    taken = [(values + price * costs[:, None]).argmin(0) for price in np.geomspace(1e-4, 50, 4 * prices)]
    saved = np.array([1 - costs[exits].mean() for exits in taken])
    nll = np.array([np.take_along_axis(loss, exits[None], 0).mean() for exits in taken])
    return _along(saving, saved, nll)


def _slopes(model: SmallModel, classifier: ExitClassifier, exit: int, select: np.ndarray) -> np.ndarray:
    """What predicted gains of going on to every deeper exit are worth in nats (K-1-exit,), as PricePolicy
    weighs them: fitted on the calibration tokens ``select`` (N,)."""
    states = model.calibration
    with torch.no_grad():
        predicted = classifier.costs(Views(model, exit).get(states, "state")).numpy()[select]
    gains, documents = label(states, exit, "gain", EASY_LOSS)[select], states.column("document")[select]
    pairs = zip(predicted.T, gains.T)
    return np.array([max(0.0, gain_slope(*pair, documents, 2, model.seed)[0]) for pair in pairs])


def _along(saving: float, saved: np.ndarray, nll: np.ndarray) -> float | None:
    """NLL of a curve at a saving, interpolated; None where the curve does not reach it."""
    order = np.argsort(saved)
    reached = saved.min() <= saving <= saved.max()
    return float(np.interp(saving, saved[order], nll[order])) if reached else None


def _priced(gains: list[np.ndarray], costs: np.ndarray, price: float) -> np.ndarray:
    """Exits (N,) of the rule of PricePolicy; gains[k] (N, K-1-k)."""
    exits = np.full(len(gains[0]), len(gains))
    for exit in reversed(range(len(gains))):
        exits[(gains[exit] <= price * (costs[exit + 1 :] - costs[exit])).all(1)] = exit
    return exits


def _random(loss: np.ndarray, costs: np.ndarray, saving: float) -> float | None:
    """Expected NLL of the best mixture of two fixed depths that saves ``saving``: chance decides per
    token."""
    means, savings = loss.mean(1), 1 - costs
    pairs = [
        (a, b)
        for a in range(len(means))
        for b in range(len(means))
        if savings[a] >= saving >= savings[b] and a != b
    ]
    mixed = []
    for a, b in pairs:
        weight = (saving - savings[b]) / (savings[a] - savings[b])
        mixed.append(weight * means[a] + (1 - weight) * means[b])
    return float(min(mixed)) if mixed else None


def report(
    values: Mapping[str, Mapping[str, float]], arms: Sequence[str], shares: Sequence[float], seeds: int
) -> tuple[dict[str, Any], list[str]]:
    """Tables for the findings, and the sentences they support, from intervals over so many ``seeds``."""
    figures, sentences = {}, []
    for arm in arms:
        if f"{arm}:ppl_full" not in values:
            continue
        names = [
            key.removeprefix(f"{arm}:").removesuffix(f".headroom.{shares[0]}")
            for key in values
            if key.startswith(f"{arm}:") and key.endswith(f".headroom.{shares[0]}")
        ]
        middle = shares[len(shares) // 2]
        ranked = sorted(names, key=lambda name: -values[f"{arm}:{name}.headroom.{middle}"]["value"])
        figures |= {
            f"{measure}, {arm}": {
                "title": f"{title} by share of tokens leaving, {arm} models",
                "note": f"0 is random exits (their expectation), 1 the {oracle}, at equal shares; test "
                f"documents, mean and 95 % t interval over {seeds} random seeds; test perplexity "
                f"{values[f'{arm}:ppl_0']['value']:.1f} at exit 0, "
                f"{values[f'{arm}:ppl_full']['value']:.1f} at full depth",
                "columns": ["signal", *(f"{share:.0%}" for share in shares)],
                "rows": [
                    [name, *(_cell(values[f"{arm}:{name}.{measure}.{share}"]) for share in shares)]
                    for name in ranked
                ],
            }
            for measure, title, oracle in (
                ("attained", "Share attained of what a signal can", "divergence oracle"),
                ("headroom", "Headroom recovered", "gain oracle, which knows the next token"),
            )
        }
        best_statistic = max(
            (n for n in names if not n.startswith(("label", "view", "width")) and "oracle" not in n),
            key=lambda n: values[f"{arm}:{n}.headroom.{middle}"]["value"],
        )
        show = {
            name: _words(values[f"{arm}:{name}.attained.{middle}"])
            for name in (
                "label divergence",
                "label gain",
                "label agreement",
                "loss oracle",
                best_statistic,
                "max_prob",
                "entropy",
            )
        }
        ceiling = _words(values[f"{arm}:divergence oracle.headroom.{middle}"])
        added = _words(values[f"{arm}:view both minus state.attained.{middle}"], 3)
        sentences.append(
            f"{arm.capitalize()} models, {middle:.0%} of the tokens leaving: of what can be attained without "
            f"knowing the next token, a classifier of the divergence attains {show['label divergence']}, of "
            f"the gain {show['label gain']}, of agreement {show['label agreement']}; the statistic of the "
            f"softmax or the state that came out best on these same documents, {best_statistic}, "
            f"{show[best_statistic]}, max softmax {show['max_prob']}, entropy {show['entropy']}; an oracle "
            f"that knows the loss at the exit {show['loss oracle']}. Statistics of the readout beside the "
            f"state add {added}. All that can be attained is {ceiling} of what an oracle that knows the next "
            "token gains over chance."
        )
    if f"{THREE_EXITS}:ppl_0" in values:

        def cells(key: str) -> list[list[float] | None]:
            return [_cell(values.get(f"{THREE_EXITS}:{key}.{saving}")) for saving in SAVINGS]

        figures["three exits"] = {
            "title": "Three exits: test NLL (nats) at equal FLOPs saved, one price against one calibrated "
            "threshold",
            "note": "random: the best mixture of fixed depths; oracles: the exit of least KL, or loss, + "
            "price x cost; then price minus threshold, paired by random seed, and the share of the way from "
            f"random to the divergence oracle; 95 % t interval over {seeds} random seeds",
            "columns": ["who decides", *(f"{saving:.0%}" for saving in SAVINGS)],
            "rows": [
                ["random", *cells("random.nll")],
                ["divergence oracle", *cells("divergence oracle.nll")],
                ["gain oracle", *cells("gain oracle.nll")],
            ]
            + [
                [f"{name}, {rule.replace('_', ' ')}", *cells(f"{name}.{key}")]
                for rule, key in (
                    ("threshold", "threshold.nll"),
                    ("price", "price.nll"),
                    ("price_minus_threshold", "price_minus_threshold"),
                    ("threshold, attained", "threshold.attained"),
                    ("price, attained", "price.attained"),
                )
                for name in ("gain", "divergence")
            ],
        }
    return figures, sentences


def _cell(value: Mapping[str, float] | None) -> list[float] | None:
    return [value["value"], value["low"], value["high"]] if value else None


def _words(value: Mapping[str, float], digits: int = 2) -> str:
    return "{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".format(**value, digits=digits)
