"""The learned signal beside the others: the routed model's classifier, and honest about what it has seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.analysis.learned import fitted_on, learned_separation, learned_signal
from offramp.analysis.low_rank import readout_inputs, sweep_states
from offramp.analysis.separation import separation, signals_of
from offramp.artifacts.artifact import open_artifact
from offramp.exits.store import Exits
from offramp.report.tables import FITTED_HERE, low_rank_sentence, separation_sentence
from offramp.routing.policies import Scorer
from offramp.states.store import States
from tests.fixtures.small_project import make_project


@pytest.fixture(scope="module", params=["state", "both"])
def opened(request, addresses, tmp_path_factory):
    """The exits of a small project, whose classifiers see the given inputs, and its states."""
    root = tmp_path_factory.mktemp("project")
    make_project(root, addresses, exits__inputs=request.param)
    states = {
        split: States(open_artifact(root / "states" / split, "states")) for split in ("calibration", "test")
    }
    return Exits(open_artifact(root / "models/exits", "exits")), states


def test_it_is_the_signal_that_routing_asks(opened):
    exits, states = opened
    score = torch.from_numpy(learned_signal(states["test"], 0, exits))
    asked = Scorer(exits, "learned", torch.device("cpu")).on_cached(states["test"])[0]
    assert exits.calibrator(0, "learned")(score).numpy() == pytest.approx(asked, abs=1e-6)


def test_its_separation_is_of_the_tokens_of_low_rank_readouts(opened):
    exits, states = opened
    test = states["test"]
    of_learned = learned_separation(test, 0, exits, 50)
    chosen = np.linspace(0, test.num_tokens - 1, 50).astype(int)
    assert readout_inputs(test, 0, 50)[2].tolist() == test.column("target")[chosen].tolist()
    loss, order = test.column("loss_0")[chosen], np.argsort(-learned_signal(test, 0, exits)[chosen])
    gap = loss[order[25:]].mean() - loss[order[:25]].mean()
    assert of_learned.tokens == 50 and of_learned.gap == pytest.approx(gap, abs=1e-5)
    best = np.sort(loss)
    assert of_learned.oracle_share == pytest.approx(gap / (best[25:].mean() - best[:25].mean()), abs=1e-5)
    assert (of_learned.flop_share > 1) == (exits.config["inputs"] != "state")  # statistics need the readout


def test_the_commands_end_in_a_sentence_that_counts_it(opened):
    exits, states = opened
    signals = signals_of(states["test"], 0, exits)
    asked = {name: signals[name] for name in ("entropy", "learned")}
    result = separation(states["test"], 0, asked, draws=20)
    rows = sweep_states(states["calibration"], states["test"], 0, [1], 50)
    best = max(asked, key=lambda name: result["signals"][name]["loss_gap"])
    assert separation_sentence(result).startswith(f"Of all signals {best} tells easy from hard")
    for split, seen in (("test", False), ("calibration", True)):
        of_learned = learned_separation(states[split], 0, exits, 50)
        sentence = low_rank_sentence(rows, of_learned)
        assert f"the learned signal {of_learned.oracle_share:.0%}" in sentence
        assert (FITTED_HERE in sentence) == fitted_on(exits, states[split]) == seen
        assert (FITTED_HERE in separation_sentence(result, seen)) == seen


def test_without_a_classifier_they_say_so(opened):
    exits, states = opened
    assert "learned" not in signals_of(states["test"], 1, exits)
    last = separation(states["test"], 1, {"entropy": signals_of(states["test"], 1)["entropy"]}, draws=20)
    rows = sweep_states(states["calibration"], states["test"], 1, [1], 50)
    for sentence in (separation_sentence(last), low_rank_sentence(rows, None)):
        assert sentence.endswith("no classifier was trained for this exit of this model.")
