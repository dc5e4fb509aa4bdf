"""Effective rank: what is known by construction, and what centring is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from studies.common.effective_rank import ROWS, effective_rank, nulls, rank_share


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.floats(0.1, 10))
def test_equal_directions_count_as_many_as_they_are(rank, scale):
    rows = torch.eye(8)[:rank].repeat(5, 1) * scale
    assert effective_rank(torch.cat((rows, -rows))) == pytest.approx(rank, rel=1e-4)


def test_it_is_the_entropy_of_singular_values():
    vectors = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    for centred in (False, True):
        values = torch.linalg.svdvals((vectors - vectors.mean(0) if centred else vectors).double())
        p = values / values.sum()
        assert effective_rank(vectors, centred) == pytest.approx(float(torch.exp(-(p * p.log()).sum())))
    assert rank_share(vectors) == effective_rank(vectors) / 6


def test_a_far_mean_is_one_direction_unless_it_is_removed():
    vectors = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) + 100
    assert effective_rank(vectors) < 1.5 and effective_rank(vectors, centred=True) > 5.9


def test_many_vectors_are_sampled_the_same_way_every_time():
    vectors = torch.randn(ROWS + 50, 3, generator=torch.Generator().manual_seed(0))
    assert (
        effective_rank(vectors, seed=1) == effective_rank(vectors, seed=1) != effective_rank(vectors, seed=2)
    )


def test_nulls_stand_beside_it():
    tokens = torch.eye(4).repeat(30, 1)
    shares = nulls(torch.randn(120, 4), tokens)
    assert set(shares) == {"random", "random.centred", "token_only", "token_only.centred"}
    assert shares["token_only"] == pytest.approx(1)
    assert shares["token_only.centred"] == pytest.approx(0.75, rel=1e-3)
    assert shares["random"] > 0.97


def test_constants_have_no_rank():
    with pytest.raises(UserError, match="at least two rows"):
        effective_rank(torch.ones(1, 3))
    with pytest.raises(UserError, match="all vectors are zero"):
        effective_rank(torch.zeros(4, 3))
    with pytest.raises(UserError, match="zero once centred"):
        effective_rank(torch.ones(4, 3), centred=True)
