"""What the studies of context vectors share, on a little made-up text: streams, embedding, contexts of
every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from studies.common.context_models import (
    PUBLISHED_STD,
    ContextModels,
    ContextText,
    build,
    context_text,
    contexts_of,
    final,
    near_embedding,
)
from studies.common.text import Document, StudyText
from tests.fixtures.tiny_studies import tiny_job


def words(count: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta"], count))


@pytest.fixture(scope="module")
def study_text() -> StudyText:
    documents = [Document(f"d{place}", words(200, place)) for place in range(16)]
    return StudyText("sotu", "made up", documents[:10], documents[10:])


@pytest.fixture(scope="module")
def models(study_text) -> ContextModels:
    job = tiny_job("context_inputs", study_text, "corrected", Path())
    return ContextModels.of({**job.shared["context_models"], "documents": None})


@pytest.fixture(scope="module")
def text(study_text, models) -> ContextText:
    return context_text(study_text, models)


def test_smaller_amounts_are_within_larger_ones(text):
    one, two = text.drawn(2, 0), text.drawn(4, 0)
    assert torch.equal(one.tokens, two.tokens[: len(one)]) and int(two.begins.sum()) == 4


def test_the_published_stream_has_no_documents_and_ends_in_its_validation_text(text):
    train, validation = text.published(400)
    assert torch.equal(torch.cat((train.tokens, validation.tokens)), text.running[:400])
    assert len(validation) == 40
    assert train.begins.sum() == 1
    with pytest.raises(UserError, match="tokens = 500: the text has 400"):
        text.published(500)


def test_an_embedding_knows_what_stands_near_what():
    tokens = torch.tensor([0, 1, 2] * 40 + [3, 4, 5] * 40)
    embedding = near_embedding(tokens, 6, 2)
    cosine = torch.nn.functional.cosine_similarity(embedding[0:1], embedding, dim=1)
    assert cosine[1:3].min() > 0.9 and cosine[3:].max() < 0.3
    assert embedding.std() == pytest.approx(PUBLISHED_STD, rel=1e-4)


def test_contexts_of_every_kind(text, models):
    model, stream = build(text, "all", 0, models), text.drawn(2, 0)
    alone = final(contexts_of(model, stream, "token_only"))
    token = stream.tokens[5]
    assert (alone[stream.tokens == token] - alone[5]).abs().max() < 1e-5
    assert not final(contexts_of(model, stream, "none")).any()
    exact = final(contexts_of(model, stream, "sequential"))
    again = final(contexts_of(model, stream, "parallel", exact))
    torch.testing.assert_close(again, exact, rtol=1e-4, atol=1e-4)


def test_settings_that_do_not_exist_are_named(models):
    given = models.model_dump()
    given["corrected"]["reading"]["batches"] = 3
    with pytest.raises(UserError, match=r"corrected\.reading\.batches = 3: "):
        ContextModels.of(given)
