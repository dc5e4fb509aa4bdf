"""The study segment_memory at tiny settings, and what its windows read."""

from __future__ import annotations

import math

import pytest
import torch

from offramp.errors import UserError
from offramp.systems.segment_memory.streams import cut_streams
from studies.common.characters import WINDOW, corrected_splits, document_ids, published_1a
from studies.common.study import Outcome
from studies.common.text import OwnText, StudyText, text_of
from studies.segment_memory.study import (
    CORRECTED_ARMS,
    PUBLISHED_ARMS,
    CorrectedSettings,
    Text,
    characters_per_word,
    corrected_arm,
    passes_over,
    shuffled_batches,
    training_streams,
)
from tests.fixtures.character_texts import own_words, sizes
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
    tiny_job,
)

pytestmark = pytest.mark.slow

NAME = "segment_memory"


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
def own() -> OwnText:
    return own_words([600, 600], 400, 400)


@pytest.fixture(scope="module")
def own_size(own) -> Text:
    return Text("own", corrected_splits(own, "own", sizes()), document_ids(own, "own", sizes()))


def test_outcomes_are_whole(published, corrected):
    check_outcome(published, 1)
    check_outcome(corrected, 2)
    check_one_plot(corrected)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, 10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_a_protocol_has_arms_of_its_own(published, corrected):
    def arms(row, start):
        return {key.removeprefix(start) for key in row if key.startswith(start)}

    assert arms(published.rows[0], "ppl.") == set(PUBLISHED_ARMS)
    assert arms(corrected.rows[0], "20k.ppl.") == set(CORRECTED_ARMS)
    assert arms(corrected.rows[0], "500k.ppl.") == {n for n, arm in CORRECTED_ARMS.items() if not arm.hrm}


def test_parameters_are_the_published_ones(published, corrected):
    row = published.rows[0]
    assert row["parameters.infini_reset"] == 168_452
    assert row["more_parameters.infini"] == pytest.approx(168_452 / 152_064 - 1)
    assert corrected.rows[1]["20k.more_parameters.infini"] == row["more_parameters.infini"]
    assert (
        row["parameters.hrm_memory_carry"] == corrected.rows[0]["20k.parameters.hrm_memory_carry"] == 193_024
    )


def test_carried_memories_alone_are_judged_emptied_and_foreign(corrected):
    judged = {key.rpartition(".")[2] for key in corrected.rows[0] if "carried_minus" in key}
    assert judged == {"input_carry", "hidden_carry", "infini_carry", "hrm_memory_carry"}


def test_a_published_arm_alone_gives_no_corrected_row(text, tmp_path):
    assert run_tiny(NAME, text, "corrected", tmp_path, ["infini_no_leak"]).rows == []


def test_random_seeds_read_the_same_text_from_other_places(own_size):
    data = own_size.data
    first, second = training_streams(data, own_size.documents["train"], 4, [0, 1])
    assert first.tokens.shape == second.tokens.shape and not torch.equal(first.tokens, second.tokens)
    start = int(torch.randint(WINDOW, (), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(second.tokens[0, 0], data.splits["train"][start : start + WINDOW])


def test_the_published_batches_are_shuffled_whole_and_carried_over_all_the_same(text):
    epoch = shuffled_batches(published_1a(text, sizes()), torch.Generator().manual_seed(0))
    assert epoch.tokens.shape[1] == 16 and not epoch.in_order and not epoch.begins.any()
    with pytest.raises(UserError, match="these are shuffled"):
        epoch.require_order()


def test_a_carried_memory_is_judged_with_what_it_was_trained_with_nothing_and_another_text(
    own, own_size, tmp_path
):
    how = CorrectedSettings.of(tiny_job(NAME, own, "corrected", tmp_path).settings["corrected"])
    (values,) = corrected_arm(own_size, "hidden_carry", how, (0,)).more
    assert set(values) == {"carried_minus_emptied", "carried_minus_foreign"}
    assert 0 not in values.values() and len(set(values.values())) == 2


def test_shuffled_windows_are_in_a_fresh_order_every_pass_and_in_order_only_where_read_so(own_size):
    streams = training_streams(own_size.data, own_size.documents["train"], 4, [0, 1])
    assert passes_over(streams, "carry", [0, 1])(1) is streams
    shuffled = passes_over(streams, "carry_shuffled", [0, 1])
    first, second = shuffled(0)[0], shuffled(1)[0]
    assert not first.in_order and not torch.equal(first.tokens, second.tokens)
    for one in (first, second):
        assert torch.equal(
            one.tokens.flatten(0, 1).sort(dim=0).values, streams[0].tokens.flatten(0, 1).sort(dim=0).values
        )


def test_a_perplexity_per_word_counts_the_characters_of_words_and_spaces(own_size, corrected):
    text = "".join(own_size.data.symbols[symbol] for symbol in own_size.data.splits["test"])
    assert characters_per_word(own_size.data, "test") == pytest.approx(len(text) / len(text.split()))
    row = corrected.rows[0]
    assert 3 < math.log(row["20k.word_ppl.hrm"]) / math.log(row["20k.ppl.hrm"]) < 8


def test_the_passage_of_the_report_is_read_with_weights_that_it_did_not_choose(corrected):
    names = {key.removeprefix("20k.passage_ppl.") for key in corrected.rows[0] if "passage_ppl" in key}
    assert names == set(CORRECTED_ARMS)


def test_a_document_in_two_rows_begins_in_both(own_size):
    streams = cut_streams(own_size.data.splits["test"], own_size.documents["test"], WINDOW, 2)
    assert streams.begins.sum() == 2
