"""The study low_rank_readout: on a little made-up text, and on states of a random readout whose SVD is
known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from offramp.analysis.low_rank import readout_inputs
from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.states.store import States, StatesWriter
from studies.common.study import Outcome
from studies.low_rank_readout.study import (
    ARMS,
    MEASURES,
    pass_values,
    published_sweep,
    tables_of,
    values_of,
)
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_sentences_find_their_keys,
    run_tiny,
)
from tests.fixtures.word_chains import chain_text

pytestmark = pytest.mark.slow

NAME = "low_rank_readout"
OF_THE_PASS = ("softmax_mse", "max_minus_mean_easy", "max_minus_mean_hard", "seconds", "seconds_ratio")
SETTINGS = {"ranks": [1, 3, 5], "tokens": 60, "logit_chunks": {"count": 3, "tokens": 20}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def published(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "published", cache)


@pytest.fixture(scope="module")
def corrected(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "corrected", cache)


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> States:
    path = tmp_path_factory.mktemp("states") / "states"
    matrix = torch.randn(40, 5, generator=torch.Generator().manual_seed(9))
    hidden = torch.randn(200, 5, generator=torch.Generator().manual_seed(9)) + 1
    with create_artifact(path, "states", {}, {}) as out:
        save_file({"matrix_0": matrix}, out.path / "readout.safetensors")
        writer = StatesWriter(out.path, 1, "float32", 1000)
        target = np.arange(200, dtype=np.int32) % 40
        writer.add({"token": np.zeros(200, np.int32), "target": target}, [hidden])
        writer.close()
        out.meta.update(exits=1, tokens=200, shards=writer.shards, window=20)
    return States(open_artifact(path, "states"))


def test_both_protocols_give_every_measure_of_every_variant_and_rank(published, corrected):
    prefixes = ("", "centred.", "weighted.", "weighted_centred.")
    ranks = (1, 2, 5, 10, 20, 32, 64)
    wanted = {f"{prefix}{name}.{rank}" for prefix in prefixes for name in MEASURES for rank in ranks}
    wanted |= {f"{name}.{rank}" for name in ("flop_share", "flop_ratio", *OF_THE_PASS) for rank in ranks}
    assert set(published.rows[0]) == set(corrected.rows[0]) == set(corrected.rows[1]) == wanted
    shown = {row["variant"] for row in corrected.figures["correlation.corrected"]}
    assert shown == set(ARMS)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, claims=10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_an_arm_alone_gives_the_values_it_has_among_others(published, corrected, cache):
    for protocol, together in (("published", published), ("corrected", corrected)):
        alone = run_tiny(NAME, chain_text(), protocol, cache, arms=["weighted"], seeds=[0]).rows[0]
        assert {key.partition(".")[0] for key in alone} == {"weighted", "flop_share", "flop_ratio"}
        assert alone == {key: together.rows[0][key] for key in alone}


def test_full_rank_keeps_the_confidence(states):
    values = values_of(published_sweep(states, SETTINGS, ARMS))
    assert values["softmax_corr.5"] == pytest.approx(1, abs=1e-5)


def test_a_pass_per_rank_gives_what_the_textbook_gives(states):
    """And the gap of its halves is that of the sweep over all ranks."""
    matrix, inputs, targets = readout_inputs(states, 0, 60)
    values = pass_values(matrix, inputs, targets, [3, 5])
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    exact, low = inputs.double() @ matrix.double().T, inputs.double() @ (u[:, :3] * s[:3] @ vt[:3]).T
    error = (low.softmax(1).amax(1) - exact.softmax(1).amax(1)).square().mean()
    assert values["softmax_mse.3"] == pytest.approx(float(error), rel=1e-4)
    assert values["softmax_mse.5"] == pytest.approx(0, abs=1e-10)
    loss = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    surer = (low.amax(1) - low.mean(1)).argsort(descending=True)[:30]
    assert values["max_minus_mean_easy.3"] == pytest.approx(float(loss[surer].mean()), rel=1e-5)
    sweep = values_of(published_sweep(states, SETTINGS, ["plain"]))
    assert values["max_minus_mean_hard.3"] - values["max_minus_mean_easy.3"] == pytest.approx(
        sweep["max_minus_mean_gap.3"], rel=1e-4
    )
    assert values["seconds.3"] > 0 and values["seconds_ratio.3"] > 0


def test_the_flops_of_a_rank_are_counted_from_the_shapes(states):
    values = values_of(published_sweep(states, SETTINGS, ["plain"]))
    assert values["flop_ratio.1"] == pytest.approx(40 * 5 / (40 + 5))


def test_published_logit_figures_are_means_over_the_first_chunks(states):
    values = values_of(published_sweep(states, SETTINGS, ["plain"]))
    generator = torch.Generator().manual_seed(9)
    matrix = torch.randn(40, 5, generator=generator).double()
    hidden = (torch.randn(200, 5, generator=generator.manual_seed(9)) + 1).double()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    low = (u[:, :3] * s[:3]) @ vt[:3]
    by_chunk = [
        np.corrcoef((part @ matrix.T).flatten(), (part @ low.T).flatten())[0, 1]
        for part in hidden[:60].split(20)
    ]
    assert values["logit_corr.3"] == pytest.approx(np.mean(by_chunk), abs=1e-5)


def test_a_correlation_that_is_not_defined_is_no_number():
    row = dict.fromkeys(MEASURES, 0.5) | {
        "variant": "weighted",
        "rank": 1,
        "margin_corr": float("nan"),
        "flop_share": 0.1,
    }
    values = values_of([row])
    assert values["weighted.margin_corr.1"] is None and values["weighted.softmax_corr.1"] == 0.5
    assert values["flop_share.1"] == 0.1
    assert "margin" not in {line["signal"] for line in tables_of([row])["correlation"]}
