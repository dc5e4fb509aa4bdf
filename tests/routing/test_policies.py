"""Policies decide in a routed pass what the same signals say of cached states; a price weighs gain."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier
from offramp.exits.store import Exits
from offramp.routing.choice import choose_policy
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.decoder import Decoder
from offramp.routing.executor import Arrivals, Executor, Work
from offramp.routing.policies import (
    GivenExits,
    PricePolicy,
    Scorer,
    ThresholdPolicy,
    exits_by_share,
)
from offramp.routing.quality import Calibration
from offramp.routing.thresholds import NOBODY, HeldOut, exits_taken
from tests.conftest import repository_params
from tests.routing.test_decoder import check_pieces_equal_one_pass
from tests.routing.test_executor import check_ragged_equals_alone

CPU = torch.device("cpu")
EVEN = [[1.0, 1.0], [1.0]]
"""Slopes of benefits that are gains as they are, of three exits."""


@pytest.mark.parametrize("signal", ["learned", "max_prob", "margin_prob", "saturation", "patience"])
def test_a_routed_pass_sees_the_confidences_of_cached_states(routed, signal):
    """At the first exit for all tokens; at later ones where the whole past stayed: where nobody leaves."""
    model, windows, states, exits, _ = routed
    scorer = Scorer(exits, signal, CPU)
    seen = []

    class Watching(ThresholdPolicy):
        def judge(self, arrivals, columns):
            seen.append(self.scorer(arrivals.exit, arrivals.states, columns))
            return torch.zeros(len(arrivals.index), dtype=torch.bool), seen[-1]

    executor = Executor(model)
    executor.run(*windows.batch(torch.arange(len(windows))), Watching(model, scorer, []))
    cached = scorer.on_cached(states)
    for exit in range(2):
        np.testing.assert_allclose(seen[exit].numpy(), cached[exit], atol=2e-3)


@pytest.mark.parametrize("signal", ["saturation", "patience", "learned"])
def test_work_counts_a_readout_for_every_arriving_token_only_where_the_signal_reads_one(routed, signal):
    model, windows, _, exits, _ = routed
    policy = ThresholdPolicy(model, Scorer(exits, signal, CPU), [0.5, 0.5])
    work = Work()
    tokens, targets = windows.batch(torch.arange(4))
    taken = Executor(model).run(tokens, targets, policy, work).exit
    arrived = sum(int((taken >= exit).sum()) for exit in range(2))
    assert work.decided_tokens == arrived
    left_at_depth = int((taken == 2).sum())
    assert sum(work.readouts) == (arrived + left_at_depth if policy.reads_out else tokens.numel())


class VocabularyProducts(TorchDispatchMode):
    """Counts the rows that are multiplied by a matrix with the vocabulary's number of columns."""

    def __init__(self, size):
        super().__init__()
        self.size, self.rows = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out) and args[1].shape[1] == self.size:
            self.rows += len(args[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "signal, inputs", [("saturation", "both"), ("learned", "state"), ("learned", "both"), ("entropy", "both")]
)
def test_signals_that_need_no_vocabulary_never_touch_the_head_and_others_read_those_still_in(
    routed, signal, inputs
):
    """Every token is read out where it leaves; before that only where the signal reads."""
    model, windows, _, exits, _ = routed
    scorer = Scorer(exits, signal, CPU)
    if inputs == "state":  # a classifier that sees no more; what it says is of no matter here
        scorer.inputs, scorer.reads_out, scorer.classifiers = (
            "state",
            False,
            [ExitClassifier(16, [], 2).eval() for _ in range(2)],
        )
    tokens, targets = windows.batch(torch.arange(4))
    policy, work = ThresholdPolicy(model, scorer, [0.5, 0.5]), Work()
    with VocabularyProducts(model.config.vocab_size) as counted:
        taken = Executor(model).run(tokens, targets, policy, work).exit
    arrived = sum(int((taken >= exit).sum()) for exit in range(2))
    asked = arrived + int((taken == 2).sum()) if scorer.reads_out else tokens.numel()
    assert counted.rows == asked == sum(work.readouts)


def with_slopes(exits: Exits, slopes: list[list[float]]) -> Exits:
    """The same exits, as if calibration text had shown these slopes."""
    changed = copy.copy(exits)
    changed.config = exits.config | {"gain_slopes": [[{"slope": slope} for slope in row] for row in slopes]}
    return changed


@pytest.mark.parametrize("price", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("slopes", [[[1.25, 1.25], [1.25]], [[0.5, 2.0], [3.0]], [[-1.0, 0.7], [-2.0]]])
def test_a_token_goes_on_exactly_where_a_rescaled_gain_is_worth_its_price(routed, price, slopes):
    """Token by token, exit by exit; a slope below 0 means that nothing is to be gained."""
    model, windows, _, exits, _ = routed
    costs = exit_costs(model, 32, True, 100)
    seen = []

    class Watching(PricePolicy):
        def judge(self, arrivals, columns):
            leaves, confidence = super().judge(arrivals, columns)
            inputs = self.scorer.classifier_inputs(arrivals.states, columns)
            seen.append((arrivals.exit, self.scorer.classifiers[arrivals.exit].costs(inputs), leaves))
            return leaves, confidence

    policy = Watching(model, Scorer(with_slopes(exits, slopes), "learned", CPU), price, costs)
    Executor(model).run(*windows.batch(torch.arange(len(windows))), policy)
    assert seen[0][0] == 0 and len(seen[0][1]) == len(windows) * 32
    for exit, benefits, leaves in seen:
        for row, left in zip(benefits.tolist(), leaves.tolist()):
            gains = [np.float32(max(slope, 0)) * np.float32(b) for slope, b in zip(slopes[exit], row)]
            ahead = [np.float32(price) * np.float32(cost - costs[exit]) for cost in costs[exit + 1 :]]
            margins = [float(gain - bar) for gain, bar in zip(gains, ahead)]
            if min(map(abs, margins)) > 1e-6 or price == 0:  # elsewhere the last digit decides
                assert left == (max(margins) <= 0)
    if price == 0.3 and min(slopes[0]) > 0:
        assert 0 < float(seen[0][2].float().mean()) < 1  # so the rule has something to tell apart


def test_a_price_weighs_gains_that_the_exits_of_the_artifact_make_of_benefits(routed):
    *_, exits, fitted = routed
    for exit in range(2):
        assert exits.gain_slopes(exit) == [slope.slope for slope in fitted.exits[exit].gain_slopes.values()]
        assert len(exits.gain_slopes(exit)) == 2 - exit


def test_exits_that_do_not_say_what_benefits_are_worth_are_no_use_for_a_price(routed):
    model, _, _, exits, _ = routed
    silent = copy.copy(exits)
    silent.config = {name: value for name, value in exits.config.items() if name != "gain_slopes"}
    with pytest.raises(UserError, match="how predicted benefits become gains; run `dvc repro train_exits`"):
        PricePolicy(model, Scorer(silent, "learned", CPU), 0.1, [0.3, 0.6, 1.0])


def test_a_higher_price_never_sends_a_token_deeper_and_the_extremes_are_all_or_nothing(routed):
    model, windows, _, exits, _ = routed
    costs = exit_costs(model, 32, True, 100)
    tokens, targets = windows.batch(torch.arange(6))
    found = []
    for price in (0.0, 0.5, 2.0, 1e9):
        policy = PricePolicy(model, Scorer(with_slopes(exits, EVEN), "learned", CPU), price, costs)
        found.append(Executor(model).run(tokens, targets, policy).exit)
    assert all((low[found[0] == 0] == 0).all() for low in found)
    first = [float((exit == 0).float().mean()) for exit in found]
    assert first == sorted(first) and first[-1] == 1.0


def test_a_price_asks_for_a_classifier_of_a_benefit(routed):
    model, _, _, exits, _ = routed
    with pytest.raises(UserError, match=r"price.*gain or divergence.*entropy"):
        PricePolicy(model, Scorer(exits, "entropy", CPU), 0.1, [0.3, 0.6, 1.0])


def test_a_price_asks_each_classifier_once_and_counts_what_it_took(routed):
    model, windows, _, exits, _ = routed
    tokens, targets = windows.batch(torch.arange(6))
    scorer, work, asked = Scorer(with_slopes(exits, EVEN), "learned", CPU), Work(), []
    for classifier in scorer.classifiers:
        classifier.layers[0].register_forward_hook(lambda _, inputs, out: asked.append(len(inputs[0])))
    policy = PricePolicy(model, scorer, 0.2, exit_costs(model, 32, scorer.reads_out, scorer.flops_per_token))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        taken = Executor(model).run(tokens, targets, policy, work).exit
    assert len(taken.unique()) == 3 and sum(asked) == work.decided_tokens
    assert executed_flops(model, work, policy.flops_per_token) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


@pytest.mark.parametrize("kv", ["propagate", "drop", "recompute"])
def test_what_leaving_is_said_to_cost_is_what_it_costs(routed, kv):
    """Random exits; where tokens that left are carried on for later ones, the least of it is said."""
    model, windows, _, _, _ = routed
    tokens, targets = windows.batch(torch.arange(6))
    exits, work = torch.randint(3, (tokens.numel(),), generator=torch.Generator().manual_seed(0)), Work()
    Executor(model, kv).run(tokens, targets, GivenExits(exits), work)
    said = np.array(exit_costs(model, 32, False, 0, kv=kv))[exits.numpy()].mean()
    spent = executed_flops(model, work) / full_depth_flops(model, tokens.numel(), 32)
    if kv == "recompute":
        assert said < spent
    else:
        assert said == pytest.approx(spent, rel=0.05)  # padding of ragged rows is executed too


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("reads_out", [False, True])
def test_exit_costs_are_what_the_executor_counts_for_a_batch_that_leaves_there(routed, reads_out, first):
    model, windows, _, _, _ = routed
    tokens, targets = windows.batch(torch.arange(4))
    costs = exit_costs(model, 32, reads_out, 50, first=first)
    for exit in range(first, 3):
        work = Work()
        policy = GivenExits(torch.full((tokens.numel(),), exit))
        policy.first = first
        Executor(model).run(tokens, targets, policy, work)
        if reads_out:
            for asked in range(first, min(exit, 2)):
                work.count_readouts(asked, tokens.numel())
        # a batch that left as a whole owes nobody its keys and values; a single token does
        width, layers = model.config.width, sum(model.config.block_layers)
        owed = (layers - len(work.key_value_tokens)) * 4 * width * width * tokens.numel()
        executed = executed_flops(model, work, 50) + owed
        assert costs[exit] == pytest.approx(executed / full_depth_flops(model, tokens.numel(), 32))
    assert all(before < after for before, after in itertools.pairwise(costs))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("threshold", [0.4, [0.3, 0.6], "auto", "budget", "price", "quality", "risk"])
def test_every_way_to_choose_a_threshold_gives_a_policy_and_says_how(routed, threshold, first):
    model, windows, _, exits, _ = routed
    params = repository_params(
        model__block_layers=[1, 2, 1],
        exits__risk__tolerance=0.6,
        exits__risk__delta=0.4,
        routing__budget=0.95,
        routing__first_exit=first,
    )
    chosen = choose_policy(
        threshold,
        exits,
        model,
        window=32,
        signals=params.exits,
        settings=params.routing,
        device=CPU,
        calibration=Calibration(Executor(model), windows),
    )
    tokens, targets = windows.batch(torch.arange(4))
    taken = Executor(model).run(tokens, targets, chosen.policy).exit
    assert ((taken >= first) & (taken <= 2)).all()
    if threshold == "budget":  # what the first exit does not take, the later ones may
        held = HeldOut(**exits.held_out("learned", "select"))
        costs = np.array(
            exit_costs(model, 32, chosen.policy.reads_out, chosen.policy.flops_per_token, first=first)
        )
        spent = costs[exits_taken(held.confidence, chosen.policy.thresholds)].mean()
        assert 0.95 - 0.02 <= spent <= 0.95 + 1e-9
    rules = {
        "budget": chosen.budget,
        "price": chosen.price,
        "quality": chosen.quality,
        "risk": chosen.promise,
    }
    said = [name for name, rule in rules.items() if rule is not None]
    assert said == [name for name in rules if name == threshold]
    if isinstance(threshold, list):
        assert (
            chosen.policy.thresholds[first:] == threshold[first:]
            and chosen.policy.thresholds[:first] == [1.0] * first
        )


def some_leave(model, exits, states, signal):
    """At every exit the more confident tokens; nobody where all are equal, as of patience at the first."""
    scorer = Scorer(exits, signal, CPU)
    thresholds = [
        float(max(np.quantile(row, 0.6), (row.min() + row.max()) / 2)) if row.min() < row.max() else NOBODY
        for row in scorer.on_cached(states)
    ]
    return ThresholdPolicy(model, scorer, thresholds)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
@pytest.mark.parametrize("signal", ["learned", "entropy", "saturation", "patience"])
def test_every_kind_of_signal_decodes_as_it_is_scored(routed, signal, kv):
    model, windows, states, exits, _ = routed
    tokens, targets = windows.batch(torch.arange(3))
    text = torch.cat([tokens, targets[:, -1:]], 1)[:, :25]
    taken = check_pieces_equal_one_pass(
        model, kv, some_leave(model, exits, states, signal), text, [24, 9, 17]
    )
    assert len(taken) > 1


@pytest.mark.parametrize("signal", ["learned", "saturation", "patience"])
def test_texts_of_different_lengths_are_scored_as_each_alone(routed, signal):
    model, windows, states, exits, _ = routed
    policy = some_leave(model, exits, states, signal)
    check_ragged_equals_alone(model, "propagate", policy, *windows.batch(torch.arange(3)), [32, 9, 17])


def test_fits_say_whether_they_converged_and_stand_beside_baselines(routed):
    for fitted in routed[4].exits:
        assert fitted.fit.converged is not None and fitted.fit.select_loss > 0
        assert fitted.majority_baseline >= 0.5
        assert set(fitted.signals) == {
            "max_prob",
            "margin_prob",
            "margin",
            "entropy",
            "max_logit",
            "max_minus_mean",
            "saturation",
            "patience",
            "learned",
        }


def test_thresholds_fall_along_the_text_and_the_first_exits_can_be_barred(routed, monkeypatch):
    model, windows, _, exits, _ = routed
    tokens, targets = windows.batch(torch.arange(4))
    scorer = Scorer(exits, "learned", CPU)
    never = ThresholdPolicy(model, scorer, [1.0, 1.0], decay=4.0)
    position = torch.arange(32)
    monkeypatch.setattr(never, "scorer", lambda *arrivals: torch.full((32,), 0.97))
    leaves, _ = never.judge(
        Arrivals(0, torch.zeros(32, 1), None, None, position, None, position, position), {}
    )
    assert leaves.tolist() == [0.9 + 0.1 * math.exp(-4.0 * place / 32) <= 0.97 for place in range(32)]
    barred = ThresholdPolicy(model, scorer, [0.0, 0.0], first=1)
    assert (Executor(model).run(tokens, targets, barred).exit == 1).all()


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
def test_the_first_tokens_of_a_sequence_can_be_kept_in_whatever_they_are_sure_of(routed, kv):
    model, windows, _, exits, _ = routed
    tokens, targets = windows.batch(torch.arange(4))
    kept = ThresholdPolicy(model, Scorer(exits, "learned", CPU), [0.0, 0.0], keep_first=3)
    taken = Executor(model, kv).run(tokens, targets, kept).exit
    assert (taken[:, :3] == 2).all() and (taken[:, 3:] == 0).all()
    decoder = Decoder(model, 4, kv)
    for place in range(8):
        fed = decoder.feed(torch.arange(4), tokens[:, place], kept, torch.full((4,), 2))
        assert (fed.exit == (2 if place < 3 else 0)).all()


def test_held_out_tokens_and_controls_leave_out_the_ones_that_are_kept(routed):
    _, windows, _, exits, _ = routed
    every, free = (exits.held_out("learned", "select", keep_first) for keep_first in (0, 4))
    assert len(free["target"]) == pytest.approx(
        len(every["target"]) * (windows.window - 4) / windows.window, abs=4
    )
    scores = np.random.default_rng(0).random((2, 100))
    may = np.arange(100) % 10 > 0
    taken = exits_by_share(scores, [60, 30], may)
    assert (taken[~may] == 2).all() and [(taken == exit).sum() for exit in range(3)] == [60, 30, 10]
