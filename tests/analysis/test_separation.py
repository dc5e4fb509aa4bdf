"""Separation measures against plain references, and the mistakes of loss-prediction that they expose."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from offramp.analysis.discrimination import SequenceBootstrap, parts, signal_separation, split, subsets
from offramp.analysis.distribution import TESTED, gaussian_d, loss_distribution
from offramp.analysis.predictability import held_out_split, predictability
from offramp.analysis.separation import separation, signals_of
from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.errors import UserError
from offramp.exits.ranking import loss_gap, most_confident
from offramp.report.tables import separation_table
from offramp.states.statistics import Readout, token_statistics
from offramp.states.store import States, StatesWriter


def separated(score, loss, deep_loss=None):
    """What is said of a score where the surer half of the tokens is called easy."""
    return signal_separation(score, loss, parts(score, loss, deep_loss), 0.5)


def noisy(tokens: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Skewed losses, a score that knows something of them, and losses at depth."""
    generator = np.random.default_rng(seed)
    loss = generator.gamma(2, 2, tokens)
    return (
        -loss + noise * generator.normal(size=tokens),
        loss,
        loss + generator.normal(size=tokens) - 0.2 * loss,
    )


# The distribution of losses


def test_two_modes_are_found_and_one_skewed_mode_is_not():
    """The report loss-prediction called a skewed distribution bimodal.

    A mixture alone would too: two Gaussians fit an exponential better.
    """
    generator = np.random.default_rng(0)
    exponential = loss_distribution(generator.exponential(3, 20_000))
    assert exponential["bic_gain"] > 0 and exponential["dip_p"] > 0.5 and not exponential["bimodal"]
    assert not loss_distribution(generator.normal(5, 1, 20_000))["bimodal"]
    two = loss_distribution(np.concatenate([generator.normal(2, 0.7, 12_000), generator.normal(7, 1, 8_000)]))
    assert two["bimodal"]
    low, high = two["components"]
    assert (low["mean"], low["weight"], high["mean"]) == pytest.approx((2, 0.6, 7), abs=0.05)


def test_histogram_and_quantiles_count_every_token():
    loss = np.random.default_rng(0).gamma(2, 2, 5_000)
    found = loss_distribution(loss, bin_width=0.25)
    for row in found["histogram"]:
        assert row["tokens"] == ((loss >= row["low"]) & (loss < row["high"])).sum()
    assert sum(row["tokens"] for row in found["histogram"]) == 5_000
    assert found["quantiles"]["0.5"] == pytest.approx(np.median(loss))
    assert (found["mean"], found["std"]) == pytest.approx((loss.mean(), loss.std()))


def test_only_so_many_tokens_are_tested_and_always_the_same():
    loss = np.random.default_rng(0).normal(5, 1, TESTED + 5_000)
    found = loss_distribution(loss)
    assert found["tested_tokens"] == TESTED and found["tokens"] == len(loss)
    assert found == loss_distribution(loss)


def test_losses_that_are_not_numbers_are_named():
    with pytest.raises(UserError, match=r"loss\[1\] = nan"):
        loss_distribution(np.array([1.0, np.nan, 2.0, 3.0]))


# The split


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_any_gaussian_split_by_itself_has_a_large_d(fraction):
    """The report's d of 2.82 is what no structure at all gives: 2.65 at the median."""
    loss = np.random.default_rng(0).normal(5, 1, 200_000)
    found = split(-loss, loss, fraction)
    assert found["cohens_d"] == pytest.approx(found["gaussian_d"], rel=0.01)
    assert gaussian_d(0.5) == pytest.approx(2.647, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(8, 300),
    fraction=st.floats(0.15, 0.85),
    noise=st.floats(0, 20),
    seed=st.integers(0, 1000),
)
def test_split_equals_the_plain_formulas_and_never_beats_the_oracle(tokens, fraction, noise, seed):
    score, loss, _ = noisy(tokens, noise, seed)
    found, count = split(score, loss, fraction), int(fraction * tokens + 1e-9)
    easy, oracle = most_confident(score, count), most_confident(-loss, count)
    gap = loss_gap(easy, loss)
    pooled = np.sqrt((loss[easy].var() + loss[~easy].var()) / 2)
    assert found["loss_gap"] == pytest.approx(gap) == found["hard_loss"] - found["easy_loss"]
    assert found["oracle_share"] == pytest.approx(gap / loss_gap(oracle, loss))
    assert found["oracle_share"] <= 1 + 1e-9
    assert found["cohens_d"] == pytest.approx(gap / pooled, rel=1e-4)


def test_equal_scores_get_the_mean_over_their_orders():
    generator = np.random.default_rng(0)
    score, loss = generator.integers(0, 4, 60).astype(float), generator.gamma(2, 2, 60)
    gaps = [
        loss_gap(most_confident(score[order], 30), loss[order])
        for order in (generator.permutation(60) for _ in range(4_000))
    ]
    assert split(score, loss)["loss_gap"] == pytest.approx(np.mean(gaps), abs=0.02)
    assert split(np.ones(60), loss)["loss_gap"] == pytest.approx(0, abs=1e-12)


def test_a_decision_is_compared_with_the_oracle_at_its_own_share():
    """The report loss-prediction divided the gap of a 9.5 % easy set by the oracle's gap at 50 %."""
    score, loss, _ = noisy(2_000, 3)
    decision = most_confident(score, 190)
    found = split(decision, loss, easy_fraction=decision.mean())
    assert found["loss_gap"] == pytest.approx(loss_gap(decision, loss))
    assert found["oracle_share"] == pytest.approx(
        loss_gap(decision, loss) / loss_gap(most_confident(-loss, 190), loss)
    )
    with pytest.raises(UserError, match=r"easy_fraction = 1\.0"):
        split(score, loss, 1.0)


# One score


def test_probability_of_the_correct_token_is_the_loss_itself():
    """The report's "100 % of the oracle": an identity, and its weak Pearson only the bend of exp(-x)."""
    _, loss, _ = noisy(5_000, 0)
    found = separated(np.exp(-loss), loss)
    assert found["tautology"] and found["oracle_share"] == pytest.approx(1) and found["pearson"] > -0.8
    assert not separated(noisy(5_000, 1)[0], loss)["tautology"]


def plain_aurc(score: np.ndarray, loss: np.ndarray) -> float:
    covered = loss[np.argsort(-score, kind="stable")]
    return float(np.mean([covered[:count].mean() for count in range(1, len(loss) + 1)]))


def plain_auroc(positive: np.ndarray, score: np.ndarray) -> float:
    count, ranks = positive.sum(), rankdata(score)
    return float((ranks[positive].mean() - (count + 1) / 2) / (len(score) - count))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(5, 200),
    levels=st.sampled_from([3, 10**6]),
    noise=st.floats(0.1, 20),
    seed=st.integers(0, 1000),
)
def test_measures_equal_their_references_with_and_without_ties(tokens, levels, noise, seed):
    score, loss, deep = noisy(tokens, noise, seed)
    score = np.floor(score * levels / 10)
    found, stays = separated(score, loss, deep), deep >= loss
    if np.ptp(score) > 0:
        assert found["pearson"] == pytest.approx(pearsonr(score, loss).statistic, abs=1e-6)
        assert found["spearman"] == pytest.approx(spearmanr(score, loss).statistic, abs=1e-6)
    if 0 < stays.sum() < tokens:
        assert found["auroc"] == pytest.approx(roc_auc_score(stays, score))
    if len(np.unique(score)) == tokens:
        assert found["aurc"] == pytest.approx(plain_aurc(score, loss))
    assert found["risk_coverage"][-1]["risk"] == pytest.approx(loss.mean())


@given(seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_only_the_order_of_a_score_counts_where_ranks_do(seed):
    score, loss, deep = noisy(200, 2, seed)
    a, b = separated(score, loss, deep), separated(np.exp(score / 5), loss, deep)
    for measure in ("spearman", "loss_gap", "oracle_share", "cohens_d", "auroc", "aurc"):
        assert a[measure] == pytest.approx(b[measure])
    assert np.sign(a["spearman"]) == np.sign(kendalltau(score, loss).statistic)


def test_risk_coverage_of_equal_scores_is_flat():
    _, loss, _ = noisy(100, 1)
    found = separated(np.zeros(100), loss, loss)
    assert [row["risk"] for row in found["risk_coverage"]] == pytest.approx([loss.mean()] * 20)
    assert found["aurc"] == pytest.approx(loss.mean())
    assert found["pearson"] is None and found["spearman"] is None and found["auroc"] is None


# Intervals


def grouped(sequences: int, length: int, seed: int = 0):
    """Tokens of a sequence share an effect on score and loss."""
    generator = np.random.default_rng(seed)
    sequence = np.repeat(np.arange(sequences), length)
    effect, own = generator.normal(size=(2, sequences))
    loss = 4 + effect[sequence] + generator.gamma(2, 1, sequences * length)
    score = -loss + own[sequence] + generator.normal(size=len(loss))
    return sequence, score, loss, loss - 0.3 + 0.4 * generator.normal(size=len(loss)) + 0.2 * own[sequence]


def test_intervals_equal_resampling_the_tokens_themselves():
    """Ranks are taken again in every plain resample; linearised measures follow in centre and width."""
    sequence, score, loss, deep = grouped(100, 12)
    bootstrap = SequenceBootstrap(sequence)
    bootstrap.add("s", parts(score, loss, deep))
    found = bootstrap.intervals(300, seed=3)["s"]
    easy = most_confident(score, len(score) // 2)
    members = [np.flatnonzero(sequence == one) for one in range(100)]
    plain: dict[str, list[float]] = {
        name: [] for name in ("pearson", "spearman", "auroc", "aurc", "loss_gap")
    }
    for times in np.random.default_rng(3).multinomial(100, np.full(100, 1 / 100), size=300):
        rows = np.concatenate([np.tile(own, n) for own, n in zip(members, times)])
        x, y = score[rows], loss[rows]
        plain["pearson"].append(np.corrcoef(x, y)[0, 1])
        plain["spearman"].append(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
        plain["auroc"].append(plain_auroc(deep[rows] >= y, x))
        plain["aurc"].append(plain_aurc(x, y))
        plain["loss_gap"].append(loss_gap(easy[rows], y))
    for name, draws in plain.items():
        low, high = np.quantile(draws, [0.025, 0.975])
        exact = name in ("pearson", "loss_gap")
        assert found[name] == pytest.approx([low, high], abs=1e-9 if exact else 0.12 * (high - low)), name


def test_values_at_hand_lie_inside_their_intervals_and_constants_have_none():
    sequence, score, loss, deep = grouped(40, 20)
    bootstrap = SequenceBootstrap(sequence)
    bootstrap.add("score", parts(score, loss, deep))
    bootstrap.add("constant", parts(np.ones(len(loss)), loss))
    found, values = bootstrap.intervals(500, 0), separated(score, loss, deep)
    for measure, (low, high) in found["score"].items():
        assert low <= values[measure] <= high, measure
    assert found["constant"]["pearson"] is None and found["constant"]["auroc"] is None


# Subsets and predictability


def test_subsets_are_the_confident_tokens():
    score, loss, _ = noisy(500, 2)
    max_prob = np.linspace(0, 1, 500)
    first, last = subsets(max_prob, loss, {"s": score}, (0.4, 0.998))
    kept = max_prob >= 0.4
    assert (first["tokens"], first["share"]) == (kept.sum(), kept.mean())
    assert first["mean_loss"] == pytest.approx(loss[kept].mean())
    assert first["pearson"]["s"] == pytest.approx(pearsonr(score[kept], loss[kept]).statistic)
    assert last["tokens"] < 3 and last["pearson"]["s"] is None


def test_predictability_finds_a_function_of_the_state_and_nothing_in_noise():
    hidden = torch.randn(2_000, 8, generator=torch.Generator().manual_seed(0))
    fit = np.arange(2_000) < 1_500
    bent = (hidden[:, 0].abs() + hidden[:, 1]).numpy()
    assert predictability(hidden, bent, fit, seed=0) > 0.95
    assert predictability(hidden, bent, fit, seed=0) == predictability(hidden, bent, fit, seed=0)
    assert abs(predictability(hidden, np.random.default_rng(0).normal(size=2_000), fit, seed=0)) < 0.15
    assert predictability(hidden, np.ones(2_000), fit, seed=0) is None


@pytest.mark.parametrize("documents", [10, 2])
def test_no_sequence_is_on_both_sides_nor_any_document_where_there_are_enough(documents):
    """The report loss-prediction fitted on the neighbours of the tokens it tested on."""
    sequence = np.repeat(np.arange(40), 16)
    document = sequence * documents // 40
    fit = held_out_split(document, sequence, seed=0)
    groups = document if documents == 10 else sequence
    assert not set(groups[fit]) & set(groups[~fit])
    assert 0.7 < fit.mean() < 0.9


# A whole exit


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> States:
    """Two exits over 48 sequences of 6 documents; the second sees the target more clearly."""
    generator = torch.Generator().manual_seed(0)
    vocab, width, tokens = 50, 12, 48 * 32
    matrix, target = (
        torch.randn(vocab, width, generator=generator),
        torch.randint(vocab, (tokens,), generator=generator),
    )
    clarity = torch.rand(tokens, 1, generator=generator)
    hidden = [
        share * clarity * matrix[target] + torch.randn(tokens, width, generator=generator)
        for share in (0.5, 0.8)
    ]
    sequence = np.repeat(np.arange(48, dtype=np.int32), 32)
    columns = {
        "document": sequence // 8,
        "sequence": sequence,
        "position": np.tile(np.arange(32, dtype=np.int32), 48),
        "token": target.numpy().astype(np.int32),
        "target": target.numpy().astype(np.int32),
    }
    for exit, found in enumerate(token_statistics(hidden, [Readout(matrix)] * 2, target)):
        columns |= {f"{name}_{exit}": values.numpy() for name, values in found.items()}
        columns[f"saturation_{exit}"] = np.linspace(0, 1, tokens, dtype=np.float32)
    path = tmp_path_factory.mktemp("states") / "test"
    with create_artifact(path, "states", {}, {}) as out:
        writer = StatesWriter(out.path, 2, "float32", 500)
        for start in range(0, tokens, 256):
            here = slice(start, start + 256)
            writer.add({name: values[here] for name, values in columns.items()}, [h[here] for h in hidden])
        writer.close()
        out.meta.update(exits=2, tokens=writer.tokens, shards=writer.shards, window=32)
    return States(open_artifact(path, "states"))


def test_an_exit_is_described_with_its_controls(states):
    known = signals_of(states, 0)
    signals = {name: known[name] for name in ("entropy", "saturation")}
    result = separation(states, 0, signals, draws=200)
    json.dumps(result, allow_nan=False)
    loss = states.column("loss_0")
    assert result["loss"]["mean"] == pytest.approx(loss.mean(dtype=np.float64), rel=1e-5)
    low, high = result["loss"]["mean_interval"]
    assert low < result["loss"]["mean"] < high
    assert result["deep_helps"] == pytest.approx((states.column("loss_1") < loss).mean())
    assert list(result["signals"]) == list(signals)
    wanted = separated(signals["entropy"], loss, states.column("loss_1"))
    got = result["signals"]["entropy"]
    assert {name: got[name] for name in wanted} == wanted
    oracle, random = result["controls"]["oracle"], result["controls"]["random"]
    assert oracle["oracle_share"] == pytest.approx(1) and result["controls"]["correct_prob"]["tautology"]
    assert random["intervals"]["oracle_share"][0] < 0.1 and abs(random["pearson"]) < 0.1
    assert got["predictability"] > 0.4 > abs(result["signals"]["saturation"]["predictability"])


def test_equal_runs_are_equal(states):
    signals = {"entropy": signals_of(states, 0)["entropy"]}
    assert separation(states, 0, signals, draws=50) == separation(states, 0, signals, draws=50)


def test_the_last_exit_has_no_depth_to_compare_with(states):
    result = separation(states, 1, {"max_prob": states.column("max_prob_1")}, draws=50)
    assert result["deep_helps"] is None and result["signals"]["max_prob"]["auroc"] is None


def test_the_table_shows_every_score_and_the_reference_of_d(states):
    result = separation(states, 1, {"a[b]": states.column("max_prob_1")}, draws=50)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(separation_table(result))
    text = console.export_text()
    assert all(
        word in text
        for word in ("a[b]", "oracle", "random", "2.65", f"{result['signals']['a[b]']['loss_gap']:.3f}")
    )


def test_mistakes_are_named(states):
    with pytest.raises(UserError, match="exits 0 to 1"):
        separation(states, 2, {})
    with pytest.raises(UserError, match="'short' has 3 values"):
        separation(states, 0, {"short": np.ones(3)})
