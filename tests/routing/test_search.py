"""The search among candidates that are run: where it ends, and what candidates are predicted to lose."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offramp.routing.search import furthest, predicted_losses
from offramp.routing.thresholds import exits_taken


@given(
    st.lists(st.floats(0, 0.2), min_size=1, max_size=60),
    st.floats(0, 3),
    st.none() | st.integers(0, 8),
    st.data(),
)
def test_a_search_ends_at_the_furthest_candidate_within_where_losses_rise(steps, limit, probes, data):
    """What is executed is worse than predicted, as it is under propagation."""
    predicted = np.cumsum([0.0, *steps])
    executed = predicted * data.draw(st.floats(1, 2))
    run: list[int] = []

    def within(place: int) -> bool:
        run.append(place)
        return bool(executed[place] <= limit)

    place = furthest(predicted, limit, within, probes)
    best = int(np.flatnonzero(executed <= limit).max())
    assert place == best if probes is None else place <= best
    assert place == 0 or (place in run and executed[place] <= limit)
    assert len(run) == len(set(run)) <= min(7, 7 if probes is None else probes)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_whatever_candidates_do_the_end_was_run_and_is_within_or_is_the_first(kept):
    place = furthest(np.zeros(len(kept)), 1.0, kept.__getitem__)
    assert place == 0 or kept[place]


def test_no_candidate_is_run_where_none_is_predicted_to_be_within():
    assert furthest(np.array([2.0, 3.0]), 1.0, lambda _: 1 / 0) == 0


@given(st.integers(1, 3), st.integers(1, 30), st.integers(0, 10_000))
def test_candidates_are_predicted_as_if_no_token_had_left(earlier, tokens, seed):
    random = np.random.default_rng(seed)
    confidence, loss = random.normal(size=(earlier, tokens)), random.exponential(size=(earlier + 1, tokens))
    may_leave = random.random(tokens) < 0.7
    path = [random.normal(size=earlier).tolist() for _ in range(3)]
    for thresholds, predicted in zip(path, predicted_losses(confidence, loss, may_leave, path)):
        exits = np.where(may_leave, exits_taken(confidence, thresholds), earlier)
        assert np.isclose(predicted, np.mean([loss[exit, token] for token, exit in enumerate(exits)]))
