"""The studies of experiments 1 and 2 of seed 001 on a little made-up text."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import UserError
from offramp.systems.segment_memory.streams import cut_streams
from studies.common import workers as _arms
from studies.common.workers import Outcome, chosen_arms
from studies.common.characters import SIZES, WINDOW, OwnText, corrected, published_1a
from studies.common.comparison import flops_per_batch
from studies.common.text import Document, StudyText
from studies.common.training import Limits
from studies.hierarchy_and_lagged_caches import study as caches
from studies.hierarchy_and_lagged_caches.lagged import Lagged, batches
from studies.segment_memory import study as memory

CACHES = copy.deepcopy(caches.SETTINGS)
CACHES["published"] |= {"epochs": 1, "lagged_epochs": 1, "head": {"epochs": 2, "learning_rate": 1e-2}}
CACHES["corrected"] |= {"updates": {"own": 4}, "look_every": 4, "head": {"epochs": 2, "learning_rate": 1e-2}}
MEMORY = copy.deepcopy(memory.SETTINGS)
MEMORY["published"] |= {"epochs": 1}
MEMORY["corrected"] |= {
    "updates": {"own": {"transformer": 4, "hrm": 4}},
    "look_every": 2,
    "rows": 4,
    "held_out_rows": {"own": 2},
}


def words(characters: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta"], characters // 4))[:characters]


@pytest.fixture(scope="module")
def own() -> OwnText:
    return OwnText(
        "own",
        "made up",
        [Document("a", words(600, 0)), Document("b", words(600, 1))],
        [Document("c", words(400, 2))],
        (Document("d", words(400, 3)),),
    )


@pytest.fixture(scope="module")
def published_text() -> StudyText:
    return StudyText("sotu", "made up", [Document("a", words(1100, 0))], [Document("c", words(200, 2))])


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_arms, "run_arms", lambda train, jobs, **_: [train(*job) for job in jobs])
        yield


@pytest.fixture(scope="module")
def on_caches(own) -> Outcome:
    return caches.run(own, "both", ["hrm_one_segment", "hrm", "lct_task_1", "lct_oacd_1"], CACHES, (0, 1))


# Experiment 1 ---------------------------------------------------------------------------------------------------------


def pairs(study, arms) -> set[str]:
    return {f"diff.{one}_minus_{other}" for one, other in study.PAIRS if {one, other} <= set(arms)}


def by_arm(arms) -> set[str]:
    return {f"{name}.{arm}" for name in ("ppl", "epoch", "parameters") for arm in arms}


def test_the_published_protocol_of_the_caches_study_gives_every_figure(published_text):
    arms = ["hrm", "untrained_2", "lct_task_1"]
    assert set(caches.run(published_text, "published", arms, CACHES).published) == pairs(
        caches, arms
    ) | by_arm(arms)


def test_the_caches_study_gives_every_figure_at_equal_updates_and_equal_flops(on_caches):
    assert on_caches.published is None  # the seed's set-up is of a corpus
    arms = ["hrm_one_segment", "hrm", "lct_task_1", "lct_oacd_1"]
    shares = {"share.deep_supervision", "share.task_loss"}
    for row in on_caches.corrected:
        names = {name.removeprefix("own.") for name in row}
        at_equal_flops = {name.removeprefix("flops.") for name in names if name.startswith("flops.")}
        assert names - {f"flops.{name}" for name in at_equal_flops} == pairs(caches, arms) | shares | by_arm(
            arms
        )
        assert at_equal_flops == pairs(caches, arms) | shares | {f"ppl.{arm}" for arm in arms}
        assert all(math.isfinite(value) for value in row.values())
    first = on_caches.corrected[0]
    assert (first["own.parameters.hrm"], first["own.parameters.lct_oacd_1"]) == (152_064, 78_080)
    assert {row[1] for row in on_caches.figures["learning_curves"]["rows"]} == set(arms)


def test_arms_do_not_depend_on_their_company(own, on_caches):
    alone = caches.run(own, "corrected", ["lct_oacd_1"], CACHES, (0, 1)).corrected
    assert [row["own.ppl.lct_oacd_1"] for row in alone] == [
        row["own.ppl.lct_oacd_1"] for row in on_caches.corrected
    ]


def test_unknown_arms_are_named():
    with pytest.raises(UserError, match="--arm = 'hrm3' is not an arm of hierarchy_and_lagged_caches"):
        chosen_arms(caches.STUDY, ["hrm3"], caches.ARMS)


def test_a_cache_is_kept_by_window_and_in_the_published_protocol_by_place(own):
    data = corrected(own, "own")
    tokens, _ = data.windows("train")
    stream = batches(data, [0, 1], by_place=False)
    for _ in range(4):
        batch = next(stream)
        for member in range(2):
            assert torch.equal(batch.tokens[member], tokens[batch.slots[member]])
    published = next(batches(data, [0], by_place=True))  # F1
    assert published.slots.tolist() == [list(range(16))] and not torch.equal(published.tokens[0], tokens[:16])


def test_untrained_features_are_those_of_layers_as_drawn(own):
    data = corrected(own, "own")
    lagged = Lagged(data, 1, [0], 4)
    before = lagged.ensemble.snapshot()
    lagged.fit_head("calibration", {"epochs": 1, "learning_rate": 1e-2})
    assert all(torch.equal(weight, before[name]) for name, weight in lagged.ensemble.weights.items())


def test_derived_figures_follow_from_the_losses():
    nll = {"lct_oacd_1": 3.4, "hrm": 2.4, "hrm_one_segment": 2.6, "lct_task_1": 2.5}
    found = caches.derived(nll)
    assert found["diff.lct_oacd_1_minus_hrm"] == pytest.approx(1.0)
    assert found["share.deep_supervision"] == pytest.approx(0.2)
    assert found["share.task_loss"] == pytest.approx(0.9)


def test_the_published_text_is_that_of_the_set_up(published_text):
    assert published_1a(published_text).vocab_size == 97


@pytest.mark.parametrize("loss", ["oacd", "task"])
@pytest.mark.parametrize("layers", [1, 2])
def test_phase_1_is_counted_as_it_runs(own, loss, layers):
    """The second layer works in every second pass alone, and OACD never goes back through the head."""
    lagged = Lagged(corrected(own, "own"), layers, [0], passes=4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        lagged.train(loss, 1)
    each = counter.get_total_flops()
    assert lagged.limits(loss, 40, 7.0 * each) == Limits(10, 7) and lagged.limits(
        loss, 40, 7.0 * each - 1
    ) == Limits(10, 6)


def test_features_at_equal_flops_are_those_of_a_shorter_phase_1(own):
    """The head is paid for, too, so fewer batches are left for the layers than equal updates have."""

    def run(updates):
        settings = CACHES["corrected"] | {
            "updates": {"own": updates},
            "head": {"epochs": 1, "learning_rate": 1e-2},
        }
        return caches.corrected_arm(own, "own", "lct_oacd_2", settings, (0, 1))

    data, long = corrected(own, "own"), run(48)
    lagged = Lagged(data, 2, [0], CACHES["corrected"]["passes"])
    flops = 48 * flops_per_batch(
        caches.build("one_level", data.vocab_size), caches.objective("one_level"), data
    )
    paid = lagged.limits("oacd", 48, flops - lagged.phase_2_flops(1)).flops
    assert 1 < paid < lagged.limits("oacd", 48, flops).flops < 12
    assert long.flops_nll == run(4 * paid).nll != long.nll


# Experiment 2 ---------------------------------------------------------------------------------------------------------


def test_the_published_protocol_of_the_memory_study_gives_every_figure(published_text):
    arms = ["hrm", "hrm_memory_carry", "infini_reset"]
    published = memory.run(published_text, "published", arms, MEMORY).published
    assert set(published) == pairs(memory, arms) | {"gain.infini_reset"} | by_arm(arms)
    assert (published["parameters.infini_reset"], published["parameters.hrm_memory_carry"]) == (
        168_452,
        193_024,
    )


def test_the_memory_study_gives_every_figure_at_equal_updates_and_equal_flops(own):
    arms = ["hrm", "infini_carry", "infini_leak", "hrm_memory_carry"]
    found = memory.run(own, "corrected", arms, MEMORY, (0, 1))
    trained = [arm for arm in arms if arm in memory.CORRECTED_ARMS]
    for row in found.corrected:
        names = {name.removeprefix("own.") for name in row if ".flops." not in name}
        assert names == pairs(memory, trained) | by_arm(trained) | {
            "gain.infini_carry",
            "gain.infini_leak",
            "parameters.hrm_memory_carry",
            "carried_minus_emptied.infini_carry",
            "carried_minus_foreign.infini_carry",
        }
        assert "own.flops.diff.infini_carry_minus_hrm" in row and all(
            math.isfinite(value) for value in row.values()
        )
    assert {row[1] for row in found.figures["learning_curves"]["rows"]} == set(trained)


def test_characters_know_their_documents():
    held_out = [Document("c", "x" * 3000), Document("d", "y" * 4000), Document("e", "z" * 6000)]
    text = StudyText(
        "wikitext", "made up", [Document("a", "a" * 15_000), Document("b", "b" * 9000)], held_out
    )
    ids, data = memory.document_ids(text, "20k"), corrected(text, "20k")
    assert {split: len(found) for split, found in ids.items()} == SIZES["20k"]
    for split, parts in (("train", "ab"), ("calibration", "xy"), ("test", "z")):
        letters = data.splits[split]
        assert [letters[ids[split] == number].unique().tolist() for number in range(len(parts))] == [
            [ord(letter) - 32] for letter in parts
        ]
    assert not set(ids["test"].tolist()) - {0}


def test_seeds_read_the_same_text_from_other_places(own):
    data, documents = corrected(own, "own"), memory.document_ids(own, "own")
    first, second = memory.training_streams(data, documents["train"], 4, [0, 1])
    assert first.tokens.shape == second.tokens.shape and not torch.equal(first.tokens, second.tokens)
    start = int(torch.randint(WINDOW, (), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(second.tokens[0, 0], data.splits["train"][start : start + WINDOW])


def test_the_published_batches_are_shuffled_whole_and_carried_over_all_the_same(published_text):
    data = published_1a(published_text)
    epoch = memory.shuffled_batches(data, torch.Generator().manual_seed(0))
    assert epoch.tokens.shape[1] == 16 and not epoch.in_order and not epoch.begins.any()  # F7
    with pytest.raises(UserError, match="these are shuffled"):
        epoch.require_order()


def test_a_carried_memory_is_judged_with_what_it_was_trained_with_nothing_and_another_text(own):
    data, documents = corrected(own, "own"), memory.document_ids(own, "own")
    found = memory.corrected_arm(own, "own", "hidden_carry", MEMORY["corrected"], (0,))
    assert set(found.more[0]) == {"carried_minus_emptied", "carried_minus_foreign"}
    assert 0 not in found.more[0].values() and len(set(found.more[0].values())) == 2
    streams = cut_streams(data.splits["test"], documents["test"], WINDOW, 2)
    assert streams.begins.sum() == 2  # one document, read in two rows
