"""The studies of seed 000 on a little made-up text and models of width 16: every figure that a claim needs is there and defined."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from offramp.systems.selective_output.training import CarryOver, lags
from studies.common import selective as _selective
from studies.common.workers import chosen_arms
from studies.common.characters import OwnText
from studies.common.selective import END, fact_windows, mixed, published_windows
from studies.common.subwords import Subwords, shuffled, subwords
from studies.common.text import Document, StudyText
from studies.findings.plots import draw_plot, plot_of
from studies.ledger.figures import terms
from studies.ledger.ledger import read_claims
from studies.measures.reversal import read_pairs
from studies.reversal import study as reversal
from studies.selective_output import study as selective_output

SETTINGS = copy.deepcopy(_selective.SETTINGS)
SETTINGS |= {
    "vocab_size": 280,
    "window": 32,
    "sizes": {"width": 16, "layers": 1, "heads": 2, "ffn_width": 16, "gate_width": 8, "rotary_share": 0.5},
}
SETTINGS["published"] |= {"windows": 20, "facts": 6, "repeats": 1, "max_epochs": 2}
SETTINGS["corrected"] |= {
    "seeds": [0, 1],
    "updates": 2,
    "look_every": 2,
    "batch_size": 4,
    "calibration_windows": 4,
    "test_windows": 4,
}
OPTIONS = selective_output.OPTIONS | {
    "coverages": [0.5, 1.0],
    "edges": [0, 4, 8, 16, 24, 32],
    "generated": {"prompts": {"published": 2, "corrected": 2}, "prompt": 4, "tokens": 6},
}
STUDIES = {"selective_output": selective_output, "reversal": reversal}


def words(count: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta", "union", "people"], count))


@pytest.fixture(scope="module")
def own() -> OwnText:
    return OwnText(
        "own",
        "made up",
        [Document("a", words(400, 0)), Document("b", words(400, 1))],
        [Document("c", words(300, 2))],
        (Document("d", words(400, 3)),),
    )


@pytest.fixture(scope="module")
def text() -> StudyText:
    return StudyText(
        "sotu",
        "made up",
        [Document(str(seed), words(200, seed)) for seed in range(8)],
        [Document(str(seed), words(200, seed)) for seed in range(8, 11)],
    )


@pytest.fixture(scope="module")
def data(text) -> Subwords:
    return subwords(text, 280, 0.2)


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """One process, and facts that fit a short window."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text(
        "\n".join(
            ["subject\tforward\tobject\tbackward", *(f"a{place}\tis\tb{place}\tis" for place in range(8))]
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        for study in STUDIES.values():
            patch.setattr(study, "run_arms", lambda train, jobs, **_: [train(*job) for job in jobs])
        for module in (_selective, reversal):
            patch.setattr(module, "PAIRS", path)
        yield


@pytest.fixture(scope="module")
def outcomes(own, text):
    """(published, corrected) of both studies."""
    runs = {
        "selective_output": lambda text, protocol: selective_output.run(
            text, protocol, selective_output.ARMS, SETTINGS, OPTIONS
        ),
        "reversal": lambda text, protocol: reversal.run(text, protocol, list(reversal.ARMS), SETTINGS),
    }
    return {name: (run(text, "published"), run(own, "both")) for name, run in runs.items()}


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_that_a_claim_needs_is_there(outcomes, name):
    published, found = outcomes[name]
    claims = [claim for claim in read_claims() if claim.study == name]
    assert len(claims) >= 10
    for claim in claims:
        assert all(key in published.published for _, key in terms(claim.key, name)[1]), claim.id
        for values in found.corrected:
            assert all(key in values for _, key in terms(claim.corrected_key, name)[1]), claim.id


@pytest.mark.parametrize("name", STUDIES)
def test_figures_are_numbers_and_plots_can_be_drawn(outcomes, name):
    published, found = outcomes[name]
    for values in [published.published, *found.corrected]:
        assert all(math.isfinite(value) for value in values.values()), {
            key for key in values if not math.isfinite(values[key])
        }
    json.dumps(found.figures, allow_nan=False)
    assert found.published is None  # the seed's recipe is of a corpus
    assert len(found.corrected) == 2 and found.corrected[0].keys() == found.corrected[1].keys()
    assert draw_plot(plot_of({"study": name, "figures": found.figures})).count("<svg") == 1


def test_there_are_claims_of_every_part():
    claims = [claim for claim in read_claims() if claim.seed == "000"]
    assert len(claims) >= 40
    assert {claim.study for claim in claims} == set(STUDIES)


# The flaws ------------------------------------------------------------------------------------------------------------


def test_what_the_published_loss_scores_has_mostly_been_read_already(outcomes, data):
    """H1: of a model that keeps silent at every other place nearly all scored targets are among its inputs; corrected, none is."""
    published, _ = outcomes["selective_output"]
    tokens, targets = data.windows("train", 32)
    speaks = torch.arange(31).expand(len(tokens), -1) % 2 == 1
    wanted = CarryOver().targets(tokens, targets, speaks)
    behind = lags(speaks)
    for place in range(31):
        for lag in set(behind[:, place].tolist()):
            assert lag < 0 or torch.equal(wanted[:, place], tokens[:, place - lag])  # the target is an input
    assert (behind[speaks] >= 0).float().mean() > 0.8
    assert published.published["visible.fixed_carried"] > 0.8
    assert published.published["visible.ordinary"] == 0


def test_no_corrected_target_is_among_its_inputs(outcomes, data):
    """A place's attempts do not change with its target: nothing of it is read, whatever is skipped."""
    _, found = outcomes["selective_output"]
    assert all(values["visible.ordinary"] == 0 for values in found.corrected)
    model = _selective.build(data.vocab_size, 0, SETTINGS)
    tokens, _ = data.windows("test", 32)
    other = tokens.clone()
    other[:, 10:] = (other[:, 10:] + 7) % data.vocab_size
    for one, two in zip(model.attempts(tokens, 1), model.attempts(other, 1)):
        torch.testing.assert_close(one[:, 9], two[:, 9])


def test_causes_of_the_mismatch_add_up():
    found = selective_output.attribution(
        {"carried": 2.0, "leak_only": 1.5, "shift_only": 0.3, "ordinary": 0.0}
    )
    assert found["mismatch_from.leak"] == pytest.approx(1.6) and found[
        "mismatch_from.double_shift"
    ] == pytest.approx(0.4)
    assert found["mismatch_share.leak"] + found["mismatch_share.double_shift"] == pytest.approx(1)
    assert selective_output.attribution({"carried": 2.0}) == {}


def test_published_windows_are_padded_facts_among_windows_of_one_stream(data):
    (tokens, targets), held = published_windows(data, ["alpha is beta", "gamma is delta"], SETTINGS)
    assert len(held[0]) == 2 and len(tokens) == 18 + 2
    assert (tokens[-1] == END).sum() > 10 and (targets[-1] == END).sum() > 10  # H5
    assert not {tuple(row) for row in held[0].tolist()} & {tuple(row) for row in tokens.tolist()}


# Data and models ------------------------------------------------------------------------------------------------------


def test_windows_stay_inside_their_documents(data):
    for split in ("train", "calibration", "test"):
        tokens, targets = data.windows(split, 32)
        assert not (tokens == END).any() and torch.equal(tokens[:, 1:], targets[:, :-1])
    assert len(data.windows("train", 32, 3)[0]) == 3
    with pytest.raises(UserError, match="no document of test has the 100001 tokens"):
        data.windows("test", 100_000)


def test_splits_are_by_document_and_the_vocabulary_is_that_of_training_text(text, data, own):
    lengths = {split: len(starts) for split, starts in data.starts.items()}
    assert lengths == {"train": 7, "calibration": 2, "test": 2}
    assert data.tokenizer == subwords(text, 280, 0.2).tokenizer != subwords(own, 280, 0.2).tokenizer
    ids = data.encode("alpha beta")
    assert data.encode("alpha") + data.encode(" beta") == ids


def test_seeds_read_in_their_own_order(data):
    windows = data.windows("train", 32)
    one, two, again = (next(shuffled(*windows, 4, seed))[0] for seed in (0, 1, 0))
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_facts_are_mixed_into_batches_without_padding(data):
    facts = [data.encode("alpha is beta"), data.encode("gamma is delta")]
    window = next(fact_windows(facts, 32, 0))
    assert len(window) == 33 and window[0] == END and (window == END).sum() < 12
    tokens, targets = next(
        mixed(shuffled(*data.windows("train", 32), 8, 0), fact_windows(facts, 32, 0), 0.25)
    )
    assert (tokens[:, 0] == END).tolist() == [True, True] + [False] * 6
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_every_fact_is_trained_in_one_half_of_the_seeds():
    even, odd = (reversal.trained_half(40, seed) for seed in (0, 1))
    assert (even != odd).all() and even.sum() == 20
    shipped = read_pairs(Path(_selective.__file__).with_name("reversal_pairs.tsv"))
    assert len(shipped) == 40 > _selective.SETTINGS["published"]["facts"]


def test_arms_without_facts_and_with_both_directions_are_controls(outcomes):
    _, found = outcomes["reversal"]
    assert {row["arm"] for row in found.figures["over_facts"]["rows"]} == set(reversal.ARMS)
    for values in found.corrected:
        assert values["reversal.ordinary"] == pytest.approx(
            values["gap.ordinary"] - values["control_gap.ordinary"]
        )


def test_runs_say_how_gates_and_losses_went(data):
    run = _selective.train_published(data, "carried", SETTINGS)
    assert len(run.gates) == len(run.silent) == len(run.fitted.curve) == 2
    assert _selective.gates_of(run.model, run.chosen_by[0]).shape == (2, 31)
    found = run.progress()
    assert found["rule_fall"] == pytest.approx(math.log(found["first_rule_ppl"] / found["best_rule_ppl"]))


def test_arms_do_not_depend_on_their_company(own, outcomes):
    alone = selective_output.run(own, "corrected", ["evenly"], SETTINGS, OPTIONS).corrected
    assert [row["ppl.evenly"] for row in alone] == [
        row["ppl.evenly"] for row in outcomes["selective_output"][1].corrected
    ]


def test_unknown_arms_are_named():
    with pytest.raises(UserError, match="--arm = 'silence' is not an arm of selective_output"):
        chosen_arms(selective_output.STUDY, ["silence"], selective_output.ARMS)
