"""Low-rank readouts against full logits computed rank by rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.measure import added_memory
from offramp.analysis.low_rank import (
    VARIANTS,
    approximate,
    logit_fidelity,
    rank_sweep,
    readout_inputs,
    sweep_states,
)
from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.errors import UserError
from offramp.report.tables import low_rank_table
from offramp.states import statistics
from offramp.states.store import States, StatesWriter

NUMBERS = (
    "coverage",
    "logit_corr",
    "softmax_corr",
    "max_logit_corr",
    "max_minus_mean_corr",
    "margin_corr",
    "agreement",
)


def draw(seed: int, vocab: int = 90, width: int = 6, tokens: int = 50, constant: float = 1.0):
    """Matrix, fit and measured inputs with a common direction and unequal variances, targets."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    matrix = normal(vocab, width) + 0.5 * normal(width)
    mixing, common = normal(width, width), constant * normal(width)
    fit, inputs = (normal(tokens, width) @ mixing + common for _ in range(2))
    return matrix, fit, inputs, torch.randint(vocab, (tokens,), generator=generator)


def textbook_logits(variant: str, matrix, fit, inputs, rank: int):
    """Logits at a rank, from the SVD of W or by projecting on leading left singular vectors of W C^(1/2)."""
    matrix, fit, inputs = (tensor.double() for tensor in (matrix, fit, inputs))
    mean = fit.mean(0) if variant.endswith("centred") else torch.zeros_like(fit[0])
    if variant.startswith("weighted"):
        left = torch.linalg.svd(matrix @ (fit - mean).T, full_matrices=False).U[:, :rank]
        kept = left @ (left.T @ matrix)
    else:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        kept = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return (inputs - mean) @ kept.T + matrix @ mean


def textbook(logits, targets):
    p, top = logits.softmax(1), logits.topk(2, dim=1)
    best = top.values[:, 0]
    return {
        "softmax": p.amax(1),
        "max_logit": best,
        "max_minus_mean": best - logits.mean(1),
        "margin": best - top.values[:, 1],
        "argmax": top.indices[:, 0],
        "loss": -logits.log_softmax(1).gather(1, targets[:, None])[:, 0],
    }


def corr(a, b) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab=st.sampled_from([7, 90, 300]),
    block=st.sampled_from([512, 2**18]),
    columns=st.sampled_from([32, 2048]),
)
def test_one_pass_equals_full_logits_computed_for_every_rank(seed, vocab, block, columns):
    """Whatever the blocks of tokens and vocabulary that the pass is cut into."""
    matrix, fit, inputs, targets = draw(seed, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BLOCK", {"cpu": block})
        patch.setattr(statistics, "COLUMNS", columns)
        patch.setattr(statistics, "SLOTS", 1)
        rows = rank_sweep(matrix, fit, inputs, targets, [1, 2, 4])
    exact_logits = inputs.double() @ matrix.double().T
    exact = textbook(exact_logits, targets)
    easy = lambda score: np.argsort(-score.numpy(), kind="stable")[: len(score) // 2]  # noqa: E731

    def gap(chosen):
        return (exact["loss"].sum() - 2 * exact["loss"][chosen].sum()) / (len(exact["loss"]) / 2)

    for row in rows:
        logits = textbook_logits(row["variant"], matrix, fit, inputs, row["rank"])
        wanted = textbook(logits, targets)
        assert row["logit_corr"] == pytest.approx(corr(logits, exact_logits), abs=1e-4)
        assert row["logit_mse"] == pytest.approx(
            float((logits - exact_logits).square().mean()), rel=1e-3, abs=1e-6
        )
        assert row["agreement"] == pytest.approx(
            float((wanted["argmax"] == exact["argmax"]).double().mean()), abs=1.5 / len(inputs)
        )
        assert row["loss"] == pytest.approx(float(wanted["loss"].mean()), rel=1e-3)
        for signal in ("softmax", "max_logit", "max_minus_mean", "margin"):
            assert row[f"{signal}_corr"] == pytest.approx(corr(wanted[signal], exact[signal]), abs=3e-3), (
                signal
            )
        assert row["max_minus_mean_gap"] == pytest.approx(
            float(gap(easy(wanted["max_minus_mean"]))), abs=1e-3
        )
        share = gap(easy(wanted["max_minus_mean"])) / gap(easy(-exact["loss"]))
        assert row["max_minus_mean_oracle_share"] == pytest.approx(float(share), abs=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_rank_is_the_exact_readout(variant):
    """Also where the fit tokens span less than the width: what they never showed is not thrown away."""
    matrix, fit, inputs, targets = draw(0)
    (row,) = rank_sweep(matrix, fit[:3], inputs, targets, [6], [variant])
    assert all(row[name] == pytest.approx(1, abs=1e-5) for name in NUMBERS)
    assert row["logit_mse"] == pytest.approx(0, abs=1e-9)
    exact = textbook(inputs.double() @ matrix.double().T, targets)
    assert row["loss"] == pytest.approx(float(exact["loss"].mean()), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 5), constant=st.sampled_from([0.0, 1.0, 10.0]))
def test_no_readout_of_that_rank_is_nearer_on_the_fit_tokens_than_the_weighted_one(seed, rank, constant):
    matrix, fit, *_ = draw(seed, constant=constant)
    error = {
        name: logit_fidelity(matrix, found, fit, [rank])[0][1]
        for name, found in approximate(matrix, fit).items()
    }
    basis = torch.linalg.qr(
        torch.randn(6, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).Q
    offset = fit.double() - fit.double().mean(0)
    logits = fit.double() @ matrix.double().T
    rival = (logits - fit.double() @ basis @ basis.T @ matrix.double().T).square().mean()
    centred_rival = ((offset - offset @ basis @ basis.T) @ matrix.double().T).square().mean()
    slack = 1 + 1e-9
    assert error["weighted"] <= min(error["plain"], float(rival)) * slack
    assert error["weighted_centred"] <= min(error["centred"], error["weighted"], float(centred_rival)) * slack


@pytest.mark.parametrize("variant", VARIANTS)
def test_coverage_grows_to_one_and_the_weighted_spectra_say_what_is_lost(variant):
    matrix, fit, *_ = draw(1)
    found = approximate(matrix, fit, [variant])[variant]
    coverage = [found.coverage(rank) for rank in range(1, 7)]
    assert coverage == sorted(coverage)
    assert coverage[-1] == pytest.approx(1)
    if variant.startswith("weighted"):
        errors = [mse for _, mse in logit_fidelity(matrix, found, fit, range(1, 7))]
        lost = [float(found.spectrum[rank:].sum()) / len(matrix) for rank in range(1, 7)]
        assert errors == pytest.approx(lost, abs=1e-9 * lost[0])


def two_directions(of_words: float, of_tokens: float):
    """Logits that vary in direction 1, of scale 1, and are constant in direction 0.

    That direction has a scale in W and a size in h.
    """
    generator = torch.Generator().manual_seed(2)
    words, states = torch.zeros(400, 8), torch.zeros(600, 8)
    words[:, :2] = torch.randn(400, 2, generator=generator) * torch.tensor([of_words, 1.0])
    states[:, 0], states[:, 1] = of_tokens, torch.randn(600, generator=generator)
    rows = rank_sweep(words, states[:300], states[300:], torch.zeros(300, dtype=torch.long), [1, 2])
    return {(row["variant"], row["rank"]): row for row in rows}


def test_a_large_constant_component_of_the_logits_uses_up_the_first_rank():
    """As in the report loss-prediction.

    The first rank has most of W, nearly all of the logits' correlation, and nothing that tells tokens apart.
    """
    rows = two_directions(of_words=20, of_tokens=1)
    assert rows["plain", 1]["coverage"] > 0.99 and rows["plain", 1]["logit_corr"] > 0.99
    assert rows["plain", 1]["logit_mse"] > 0.8  # the whole variance over tokens
    assert rows["plain", 2]["max_minus_mean_corr"] > 0.99
    assert rows["weighted_centred", 1]["logit_mse"] < 1e-3
    assert (
        rows["weighted_centred", 1]["softmax_corr"] > 0.99
        and rows["weighted_centred", 1]["max_minus_mean_corr"] > 0.99
    )


def test_kept_apart_the_constant_component_costs_no_rank():
    """The plain first rank goes to the larger direction of W and misses most of the logits, the constant."""
    rows = two_directions(of_words=0.5, of_tokens=40)
    assert rows["plain", 1]["logit_corr"] < 0.3
    assert rows["centred", 1]["logit_corr"] > 0.99 and rows["centred", 1]["softmax_corr"] > 0.99


def test_flop_share_shows_where_nothing_is_saved():
    matrix, fit, inputs, targets = draw(3)
    rows = rank_sweep(matrix, fit, inputs, targets, [6, 1, 6], ["plain"])
    assert [row["rank"] for row in rows] == [1, 6]
    assert [row["flop_share"] for row in rows] == pytest.approx([(6 + 90) / (6 * 90), (6 + 90) / 90])
    assert rows[1]["flop_share"] > 1


@pytest.mark.parametrize(
    ("ranks", "variants", "message"),
    [
        ([0], VARIANTS, "rank 0 .* width 6; choose from 1 to 6"),
        ([2, 7], VARIANTS, "rank 7 .* width 6; choose from 1 to 6"),
        ([2], ["centered"], "'centered' is not known; use plain, centred"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_remedy(ranks, variants, message):
    with pytest.raises(UserError, match=message):
        rank_sweep(*draw(4), ranks, variants)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens():
    """Tokens x vocabulary would be 1 GiB more; what grows is four numbers per token and rank."""

    def added(tokens: int) -> float:
        setup = (
            "from offramp.analysis.low_rank import rank_sweep\n"
            "matrix, fit = torch.randn(16384, 4), torch.randn(64, 4)\n"
            f"inputs, targets = torch.randn({tokens}, 4), torch.zeros({tokens}, dtype=torch.long)\n"
            "rank_sweep(matrix, fit, inputs[:64], targets[:64], [1])"
        )
        return added_memory(setup, "rank_sweep(matrix, fit, inputs, targets, [1, 2], ['plain'])")

    assert added(16384) < added(2048) + 8


@pytest.fixture
def states(tmp_path):
    """Two splits of a model with a final norm, and one of another model."""
    out = []
    for place, (split, seed) in enumerate((("calibration", 0), ("test", 0), ("other", 1))):
        generator = torch.Generator().manual_seed(seed)
        with create_artifact(tmp_path / split, "states", {}, {}) as artifact:
            save_file(
                {
                    "matrix_0": torch.randn(40, 5, generator=generator),
                    "norm_0": torch.rand(5, generator=generator) + 0.5,
                },
                artifact.path / "readout.safetensors",
            )
            writer = StatesWriter(artifact.path, 1, "float32", 30)
            hidden = torch.randn(100, 5, generator=generator.manual_seed(place)) * 3 + 1
            for part in hidden.split(25):
                writer.add({"token": np.zeros(25, np.int32), "target": np.arange(25, dtype=np.int32)}, [part])
            writer.close()
            artifact.meta.update(exits=1, tokens=writer.tokens, shards=writer.shards, window=25)
        out.append((States(open_artifact(tmp_path / split, "states")), hidden))
    return out


def test_states_are_read_through_their_final_norm(states):
    (calibration, fit), (test, hidden), _ = states
    stored = load_file(test.artifact.file("readout.safetensors"))
    norm = torch.nn.RMSNorm(5, eps=1e-6).requires_grad_(False)
    norm.weight.copy_(stored["norm_0"])
    matrix, inputs, targets = readout_inputs(test, 0, max_tokens=1000)
    torch.testing.assert_close(inputs, norm(hidden))
    assert targets.tolist() == [*range(25)] * 4
    found = sweep_states(calibration, test, 0, [2], 1000)
    for row, wanted in zip(found, rank_sweep(matrix, norm(fit), norm(hidden), targets, [2])):
        assert row.pop("variant") == wanted.pop("variant")
        assert row == pytest.approx(wanted, rel=1e-4)


def test_tokens_are_taken_evenly_spaced(states):
    _, (test, _), _ = states
    *_, targets = readout_inputs(test, 0, max_tokens=4)
    assert targets.tolist() == [0, 33 % 25, 66 % 25, 99 % 25]


def test_states_that_do_not_belong_together_are_refused(states):
    (calibration, _), (test, _), (other, _) = states
    with pytest.raises(UserError, match="readouts of different models; collect both again"):
        sweep_states(calibration, other, 0, [2], 100)
    with pytest.raises(UserError, match=r"exit 1 is not in .*; choose from 0 to 0"):
        sweep_states(calibration, test, 1, [2], 100)
    with pytest.raises(UserError, match=r"max_tokens = 1 .* at least 2"):
        sweep_states(calibration, test, 0, [2], 1)


def test_the_table_has_a_line_for_every_variant_and_rank(states):
    (calibration, _), (test, _), _ = states
    assert low_rank_table(sweep_states(calibration, test, 0, [1, 3], 100)).row_count == 2 * len(VARIANTS)
