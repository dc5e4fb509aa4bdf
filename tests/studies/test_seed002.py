"""The studies of seed 002 on a little made-up text: every key that claims need, controls that are what they say, named errors."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from studies.common import contexts as shared
from studies.common.characters import OwnText
from studies.common.contexts import SubWords, build, contexts_of, final, near_embedding, sub_words
from studies.common.results import over_seeds
from studies.common.text import Document, StudyText
from studies.context_inputs import study as inputs
from studies.context_scaling import study as scaling
from studies.findings import findings
from studies.findings.plots import draw_plot, plot_of
from studies.ledger.figures import terms
from studies.ledger.ledger import read_claims
from studies.parallel_contexts import study as likeness

STUDIES = {study.STUDY: study for study in (inputs, scaling, likeness)}
SMALL = {
    "vocab_size": 262,
    "running": 400,
    "piece": 128,
    "pieces": {"train": 32, "calibration": 2, "test": 2},
    "width": 6,
    "context_width": 6,
    "layers": 2,
}
TINY: dict[str, dict] = {name: copy.deepcopy(study.SETTINGS) for name, study in STUDIES.items()}
TINY["context_inputs"]["published"] |= {"tokens": 300}
TINY["context_inputs"]["published"]["all_334"] |= {"tokens": 200}
TINY["context_inputs"]["corrected"] |= {"pieces": 2, "updates": 2, "looks": 2}
TINY["context_scaling"]["published"] |= {"tokens": [150, 200, 300, 400]}
TINY["context_scaling"]["corrected"] |= {
    "pieces": 32,
    "sizes": 6,
    "updates": 2,
    "looks": 2,
    "transformer": {"heads": 1, "ffn_width": 8, "block_layers": [1]},
}
TINY["parallel_contexts"]["published"] |= {"tokens": 300}
TINY["parallel_contexts"]["corrected"] |= {
    "pieces": 2,
    "updates": 2,
    "looks": 1,
    "most": 3,
    "passes": [1, 2, 4],
}


def words(count: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta"], count))


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setitem(shared.SHARED, name, value)
        for name in ("published", "corrected"):
            given = shared.SHARED[name]
            patch.setitem(given, "fixed_point", given["fixed_point"] | {"most": 3})
            patch.setitem(given, "reading", given["reading"] | {"batch": 128})
        patch.setitem(shared.SHARED["published"], "epochs", 2)
        counted = [
            f"full_{name}.{token_input}"
            for name in ("parameters", "trained")
            for token_input in ("all", "first")
        ]
        patch.setattr(
            inputs, "full_size", lambda: dict.fromkeys(counted, 1.0)
        )  # tests/models/test_context_vector.py counts them
        for study in STUDIES.values():
            patch.setattr(study, "run_arms", lambda train, jobs, **_: [train(*job) for job in jobs])
        yield


@pytest.fixture(scope="module")
def text() -> StudyText:
    documents = [Document(f"d{place}", words(200, place)) for place in range(16)]
    return StudyText("sotu", "made up", documents[:10], documents[10:])


@pytest.fixture(scope="module")
def small_words(text) -> SubWords:
    return sub_words(text)


@pytest.fixture(scope="module")
def outcomes(text, small_words):
    return {
        name: study.run(text, "both", list(study.ARMS), TINY[name], (0, 1), small_words)
        for name, study in STUDIES.items()
    }


# Results --------------------------------------------------------------------------------------------------------------


def test_every_figure_is_a_number_and_claims_find_theirs(outcomes):
    claimed = [claim for claim in read_claims() if claim.seed == "002"]
    assert len(claimed) >= 25
    for name, found in outcomes.items():
        for values in (found.published, *found.corrected):
            assert all(math.isfinite(value) for value in values.values())
        for place, values in (("key", found.published), ("corrected_key", found.corrected[0])):
            keys = {
                key
                for claim in claimed
                for study, key in terms(getattr(claim, place), claim.study)[1]
                if study == name
            }
            assert keys and keys <= set(values)
        assert found.corrected[0].keys() == found.corrected[1].keys()
        assert sum(bool(figure.get("plot")) for figure in found.figures.values()) == 1


@pytest.mark.parametrize("name", STUDIES)
def test_sentences_of_the_findings_find_their_figures_and_the_plot_is_drawn(outcomes, name):
    found, text = outcomes[name], {"text": {}, "study": name}
    protocols = {
        "published": {"values": found.published},
        "corrected": {"values": over_seeds(found.corrected)},
    }
    result = text | protocols | {"figures": found.figures}
    assert len(findings._facts(name, result)) == len(findings.FACTS[name])
    assert "<svg" in draw_plot(plot_of(result))


def test_arms_do_not_depend_on_their_company(outcomes, text, small_words):
    alone = inputs.run(text, "corrected", ["first"], TINY["context_inputs"], (0, 1), small_words).corrected
    assert [row["ppl.first"] for row in alone] == [
        row["ppl.first"] for row in outcomes["context_inputs"].corrected
    ]
    alone = scaling.run(
        text, "corrected", ["transformer"], TINY["context_scaling"], (0, 1), small_words
    ).corrected
    assert alone[0]["alpha.transformer"] == outcomes["context_scaling"].corrected[0]["alpha.transformer"]


def test_text_of_ones_own_has_the_corrected_protocol_alone(small_words):
    train, calibration, test = (
        Document(name, words(count, place))
        for place, (name, count) in enumerate((("a", 900), ("b", 300), ("c", 300)))
    )
    own = OwnText("own", "made up", [train], [calibration], (test,))
    found = likeness.run(own, "both", ["all"], TINY["parallel_contexts"], (0, 1))
    assert found.published is None and math.isfinite(found.corrected[0]["diff.parallel_minus_sequential.all"])


def test_rank_is_told_from_what_goes_along_with_it():
    arms = inputs.RANKED
    rank = {arm: (0.8 if arm.startswith("all") else 0.2) + 0.01 * place for place, arm in enumerate(arms)}
    caused = inputs.causes({arm: 5 - rank[arm] for arm in arms}, rank)
    assert caused["slope.all"] == pytest.approx(-1) == caused["slope.first"] and caused[
        "correlation.arms"
    ] == pytest.approx(-1)
    assert caused["explained"] == pytest.approx(1)
    along = inputs.causes({arm: 4.0 if arm.startswith("all") else 5.0 for arm in arms}, rank)
    assert along["slope.all"] == pytest.approx(0, abs=1e-9) and along["correlation.arms"] < -0.8
    assert along["explained"] == pytest.approx(0, abs=1e-9)


def test_smaller_amounts_are_within_larger_ones_and_double(small_words):
    assert scaling.amounts(small_words, {"pieces": 8, "sizes": 4}) == [1, 2, 4, 8]
    one, two = small_words.drawn(2, 0), small_words.drawn(4, 0)
    assert torch.equal(one.tokens, two.tokens[: len(one)]) and int(two.begins.sum()) == 4
    with pytest.raises(UserError, match="8 training pieces do not make 6 amounts"):
        scaling.amounts(small_words, {"pieces": 8, "sizes": 6})


def test_the_transformer_is_judged_on_the_targets_of_the_context_models(small_words):
    held = small_words.held_out("test")
    tokens, targets = scaling.windows(held)
    assert tokens.shape == (2, scaling.WINDOW)
    assert torch.equal(tokens[0], held.tokens[:128]) and torch.equal(targets[1], held.tokens[130:258])


def test_the_published_stream_has_no_documents_and_ends_in_its_validation_text(small_words):
    train, validation = small_words.published(400)
    assert (
        torch.equal(torch.cat((train.tokens, validation.tokens)), small_words.running[:400])
        and len(validation) == 40
    )
    assert train.begins.sum() == 1
    with pytest.raises(UserError, match="tokens = 500: the text has 400"):
        small_words.published(500)


# Controls -------------------------------------------------------------------------------------------------------------


def test_an_embedding_knows_what_stands_near_what():
    tokens = torch.tensor([0, 1, 2] * 40 + [3, 4, 5] * 40)
    found = near_embedding(tokens, 6, 2)
    cosine = torch.nn.functional.cosine_similarity(found[0:1], found, dim=1)
    assert cosine[1:3].min() > 0.9 and cosine[3:].max() < 0.3
    assert found.std() == pytest.approx(shared.PUBLISHED_STD, rel=1e-4)


def test_contexts_of_every_kind(small_words):
    model, stream = build(small_words, "all", 0), small_words.drawn(2, 0)
    alone = final(contexts_of(model, stream, "token_only"))
    token = stream.tokens[5]
    assert (alone[stream.tokens == token] - alone[5]).abs().max() < 1e-5
    assert not final(contexts_of(model, stream, "none")).any()
    exact = final(contexts_of(model, stream, "sequential"))
    torch.testing.assert_close(
        final(contexts_of(model, stream, "parallel", exact)), exact, rtol=1e-4, atol=1e-4
    )


def test_the_same_token_elsewhere():
    tokens = torch.tensor([3, 1, 3, 2, 1, 3])
    found = likeness.same_token(tokens, torch.Generator().manual_seed(0))
    assert torch.equal(tokens[found], tokens)
    assert [place for place in range(6) if found[place] == place] == [3]  # it occurs once


def test_likeness_of_equal_contexts_and_of_those_that_know_the_token_alone():
    tokens = torch.arange(8).repeat(20)
    exact = torch.randn(160, 4, generator=torch.Generator().manual_seed(0)) + 5
    same = likeness.likeness(exact, exact, tokens, 0)
    assert (
        same["mse"] == 0 == same["unexplained"] and same["cos"] == pytest.approx(1) == same["centred.cos_min"]
    )
    assert (
        same["null.other.cos"] > 0.8 and abs(same["null.other.centred.cos"]) < 0.3
    )  # a far mean makes everything alike
    elsewhere = exact[likeness.same_token(tokens, torch.Generator().manual_seed(0))]
    assert likeness.likeness(elsewhere, exact, tokens, 0)["unexplained"] == pytest.approx(1)


def test_edges_of_documents():
    assert likeness.edges(300)["middle"].tolist() == list(range(100, 200))
    assert likeness.edges(200, 2)["late"].tolist() == [*range(100, 200), *range(300, 400)]
