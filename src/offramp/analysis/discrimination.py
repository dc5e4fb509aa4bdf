"""How well a score separates easy tokens from hard ones, with intervals over sequences.

Scores are oriented: higher = surer. Tokens of equal score stand in no order; whatever a ranking gives to one
of them is the mean over all their orders, so a score of few values (a decision, patience) is neither helped
nor harmed by the order of the file, and a constant one separates nothing.

Every measure is a function of a few token means (``parts``), so that a resample of sequences needs their sums
only. Pearson, the split and its Cohen's d are exact functions of means. Spearman, AUROC and AURC depend on
ranks: their parts are their influence functions, the first-order effect a token has on the measure through
its own term AND through everyone else's rank (for AUROC the placements of DeLong et al. 1988). Shapes: N
tokens, all arrays (N,).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from offramp.analysis.distribution import finite, gaussian_d
from offramp.errors import UserError
from offramp.states.resampling import GroupSums, interval

Parts = dict[str, np.ndarray]

COVERAGES = np.arange(1, 21) / 20
NEGLIGIBLE = 1e-12
"""Below this share of the largest value a spread is rounding."""
SAME_ORDER = 0.9999
"""Spearman correlation from which a score is the loss itself under another name."""


class Ranking:
    """Tokens ordered by a score, surest first; ``group`` (N,) numbers the distinct scores from the surest."""

    def __init__(self, score: np.ndarray):
        _, self.group, self.size = np.unique(-score, return_inverse=True, return_counts=True)
        self.tokens = len(score)

    def share(self, by_place: np.ndarray) -> np.ndarray:
        """What each token gets (N,) of values that belong to places, shared evenly among equals."""
        return (np.add.reduceat(by_place, np.cumsum(self.size) - self.size) / self.size)[self.group]

    def above(self, values: np.ndarray) -> np.ndarray:
        """Sum (N,) over all tokens that rank above each token, equals counting half."""
        sums = np.bincount(self.group, weights=values)
        return (np.cumsum(sums) - sums / 2)[self.group]

    def levels(self) -> np.ndarray:
        """Mid-ranks (N,) as a share of the tokens: the surest has the highest, the mean is 1/2."""
        return self.share(np.arange(self.tokens, 0, -1) - 0.5) / self.tokens

    def easy(self, fraction: float) -> np.ndarray:
        """Weight (N,) of each token in the easy part: 1, 0, or a share where equals straddle its end."""
        count = int(fraction * self.tokens + 1e-9)
        if not 0 < count < self.tokens:
            raise UserError(
                f"easy_fraction = {fraction} of {self.tokens} tokens leaves one part empty; choose one "
                "between 0 and 1"
            )
        return self.share((np.arange(self.tokens) < count).astype(np.float64))


def split(score: np.ndarray, loss: np.ndarray, easy_fraction: float = 0.5) -> dict[str, float | None]:
    """Losses of the surest ``easy_fraction`` of the tokens and of the others.

    ``easy_loss``, ``hard_loss`` and their difference ``loss_gap`` in nats; ``oracle_share``: the gap over
    that of the true loss at the SAME fraction (for a decision, pass the share it calls easy); ``cohens_d``:
    the gap over sqrt((s1^2 + s2^2) / 2); ``gaussian_d``: the d that splitting a single Gaussian by itself
    gives.
    """
    score, loss = finite("score", score), finite("loss", loss)
    return _numbers(_split_values(_means(_split_parts(Ranking(score), loss, easy_fraction)))) | _reference(
        easy_fraction
    )


def signal_separation(
    score: np.ndarray, loss: np.ndarray, of_score: Parts, easy_fraction: float
) -> dict[str, Any]:
    """Everything said of one score, from its ``parts``: all of ``split`` and the following.

    ``pearson``, ``spearman`` with the loss: negative where surer tokens are easier. ``auroc`` for "deep
    beats shallow": the score says leave, a positive is a token that depth does NOT help (deep_loss >=
    loss), so 1/2 is chance and higher is better; None where the parts are without ``deep_loss``.
    ``aurc``: mean over all coverages of the mean loss of the covered, surest first (El-Yaniv and Wiener
    2010; Geifman et al., arXiv 1805.08206); ``risk_coverage`` rows (coverage, risk). ``tautology``: the
    score ranks tokens as the loss does, so that its share of the oracle is an identity (in the report
    loss-prediction: p of the correct token).
    """
    values = _numbers(measures(_means(of_score))) | _reference(easy_fraction)
    values["tautology"] = values["spearman"] is not None and values["spearman"] < -SAME_ORDER
    return values | {"risk_coverage": _risk_coverage(finite("score", score), finite("loss", loss))}


def parts(
    score: np.ndarray, loss: np.ndarray, deep_loss: np.ndarray | None = None, easy_fraction: float = 0.5
) -> Parts:
    """Per-token quantities whose means determine ``measures``."""
    x, y = finite("score", score), finite("loss", loss)
    by_score, by_loss = Ranking(x), Ranking(-y)
    spread = x.std()
    x = (x - x.mean()) / spread if spread > NEGLIGIBLE * np.abs(x).max() else np.zeros_like(x)
    out = _split_parts(by_score, y, easy_fraction) | {"x": x, "xx": x * x, "xy": x * y, "yy": y * y}
    out["spearman"] = _spearman_influence(by_score, by_loss)
    out["aurc"] = _aurc_influence(by_score, y)
    if deep_loss is not None:
        out |= _auroc_parts(by_score, finite("deep_loss", deep_loss) >= y)
    return out


def measures(means: dict[str, Any]) -> dict[str, Any]:
    """The measures that token means of ``parts`` give; NaN where undefined.

    Numbers from numbers, arrays (draws,) from resampled means.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = means["xy"] - means["x"] * means["y"]
        spread = (means["xx"] - means["x"] ** 2) * (means["yy"] - means["y"] ** 2)
        out = {"pearson": covariance / np.sqrt(spread), "spearman": means["spearman"]}
        out |= _split_values(means)
        if "stays" in means:
            out["auroc"] = means["stays_above"] / means["stays"] + means["helped_below"] / (
                1 - means["stays"]
            )
        else:
            out["auroc"] = np.nan * means["y"]
    return out | {"aurc": means["aurc"]}


class SequenceBootstrap:
    """Intervals of every measure of several scores from the same resamples of whole sequences (labels (N,)).

    Held fixed: the scores, which tokens each split calls easy, and the spread of the ranks; rank measures are
    linear around their value. Keeps sums per sequence only.
    """

    def __init__(self, sequences: np.ndarray):
        self.sequences = sequences
        self._sums: GroupSums[str] = GroupSums(sequences, {})
        self._parts: dict[str, list[str]] = {}

    def add(self, name: str, of: Parts) -> None:
        """A score's ``parts``."""
        self._parts[name] = list(of)
        self._sums.sums |= {
            f"{name}/{part}": sums for part, sums in GroupSums(self.sequences, of).sums.items()
        }

    def intervals(self, draws: int, seed: int) -> dict[str, dict[str, list[float] | None]]:
        """{score: {measure: 95 % percentile interval}}; None where nothing varies or nothing is defined."""
        resampled = self._sums.resample(draws, seed)
        values = {
            name: measures({part: resampled[f"{name}/{part}"] for part in of})
            for name, of in self._parts.items()
        }
        return {
            name: {measure: interval(drawn) for measure, drawn in of_score.items()}
            for name, of_score in values.items()
        }


def subsets(
    max_prob: np.ndarray,
    loss: np.ndarray,
    scores: dict[str, np.ndarray],
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> list[dict[str, Any]]:
    """Tokens with ``max_prob`` of at least each threshold (report loss-prediction, table 2a).

    Rows: threshold, tokens, share, mean_loss and ``pearson`` {score: correlation with the loss among them},
    None below 3 tokens or without variation. A narrower range of confidence lowers a correlation by itself.
    """
    loss, rows = finite("loss", loss), []
    for threshold in thresholds:
        kept = np.asarray(max_prob) >= threshold
        count = int(kept.sum())
        rows.append(
            {
                "threshold": threshold,
                "tokens": count,
                "share": count / len(loss),
                "mean_loss": float(loss[kept].mean()) if count else None,
                "pearson": {
                    name: _pearson(finite(name, score[kept]), loss[kept]) for name, score in scores.items()
                },
            }
        )
    return rows


def _split_parts(ranking: Ranking, loss: np.ndarray, fraction: float) -> Parts:
    easy, oracle = ranking.easy(fraction), Ranking(-loss).easy(fraction)
    return {
        "y": loss,
        "yy": loss * loss,
        "easy": easy,
        "easy_y": easy * loss,
        "easy_yy": easy * loss * loss,
        "oracle": oracle,
        "oracle_y": oracle * loss,
    }


def _split_values(means: dict[str, Any]) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        hard = 1 - means["easy"]
        low, high = means["easy_y"] / means["easy"], (means["y"] - means["easy_y"]) / hard
        low_square, high_square = means["easy_yy"] / means["easy"], (means["yy"] - means["easy_yy"]) / hard
        best = (means["y"] - means["oracle_y"]) / (1 - means["oracle"]) - means["oracle_y"] / means["oracle"]
        pooled = np.sqrt((low_square - low**2 + high_square - high**2) / 2)
        negligible = NEGLIGIBLE * np.abs(means["y"])
        return {
            "easy_loss": low,
            "hard_loss": high,
            "loss_gap": high - low,
            "oracle_share": (high - low) / np.where(best > negligible, best, np.nan),
            "cohens_d": (high - low) / np.where(pooled > negligible, pooled, np.nan),
        }


def _reference(easy_fraction: float) -> dict[str, float]:
    return {"easy_fraction": easy_fraction, "gaussian_d": gaussian_d(easy_fraction)}


def _spearman_influence(by_score: Ranking, by_loss: Ranking) -> np.ndarray:
    """(N,), its mean the rank correlation; adding a token also lifts the rank of all that are above it."""
    x, y = by_score.levels() - 0.5, 0.5 - by_loss.levels()
    scale = x.std() * y.std()
    if scale < NEGLIGIBLE:
        return np.full(len(x), np.nan)
    effect = x * y + (by_score.above(y) - by_loss.above(x)) / len(x)
    return (effect - effect.mean() + (x * y).mean()) / scale


def _aurc_influence(ranking: Ranking, loss: np.ndarray) -> np.ndarray:
    """Influence (N,) of every token on the area, which is its mean.

    A token at place k is in the mean loss of every coverage from k on, weighing 1/j at j.
    """
    inverse = 1 / np.arange(1, ranking.tokens + 1)
    through_itself = loss * ranking.share(np.cumsum(inverse[::-1])[::-1])
    pushed = loss * ranking.share(inverse)  # how much a token counts less when one more ranks above it
    effect = through_itself - (pushed.sum() - ranking.above(pushed))
    return effect - effect.mean() + through_itself.mean()


def _auroc_parts(ranking: Ranking, stays: np.ndarray) -> Parts:
    """Placements: the share of the other class that each token outranks (``stays``) or is outranked by."""
    stays = stays.astype(np.float64)
    helped, count = 1 - stays, stays.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        outranked = 1 - ranking.above(helped) / (ranking.tokens - count)
        outranking = ranking.above(stays) / count
        half = (stays * outranked).sum() / count / 2
    return {
        "stays": stays,
        "stays_above": stays * (outranked - half),
        "helped_below": helped * (outranking - half),
    }


def _risk_coverage(score: np.ndarray, loss: np.ndarray) -> list[dict[str, float]]:
    ranking = Ranking(score)
    by_place = np.repeat(np.bincount(ranking.group, weights=loss) / ranking.size, ranking.size)
    risk = np.cumsum(by_place) / np.arange(1, len(loss) + 1)
    counts = np.ceil(COVERAGES * len(loss) - 1e-9).astype(np.int64)
    return [
        {"coverage": float(coverage), "risk": float(risk[count - 1])}
        for coverage, count in zip(COVERAGES, counts)
    ]


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _means(of: Parts) -> dict[str, float]:
    return {name: values.mean() for name, values in of.items()}


def _numbers(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
