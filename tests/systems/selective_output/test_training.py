"""The published loss and its leak, and the corrected one: what it scores, and that its gates learn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.systems.ensemble import Optimisation
from offramp.systems.selective_output.model import SelectiveConfig, SelectiveLM
from offramp.systems.selective_output.training import (
    Attempts,
    CarryOver,
    _first_to_speak,
    carried,
    lags,
    mean_score,
    outputs,
    outputs_at_intervals,
    train,
)

VOCABULARY, WINDOW = 9, 10


def tiny(seed: int = 0, scale: float = 5.0) -> SelectiveLM:
    torch.manual_seed(seed)
    model = SelectiveLM(
        SelectiveConfig(
            VOCABULARY, WINDOW, width=16, layers=1, heads=2, ffn_width=16, gate_width=8, rotary_share=0.5
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale if weight.ndim == 2 else 1)
    return model


def windows(rows: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(VOCABULARY, (rows, WINDOW + 1), generator=torch.Generator().manual_seed(seed))
    return text[:, :-1], text[:, 1:]


# The published rule -------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 3))
def test_outputs_are_those_of_the_scan_from_left_to_right(opened, max_skip):
    wanted, skips = [], 0
    for gate in opened:
        speaks = gate or skips >= max_skip
        wanted.append(speaks)
        skips = 0 if speaks else skips + 1
    gates = torch.tensor([opened], dtype=torch.float32)
    assert outputs(gates, 0.5, max_skip)[0].tolist() == wanted


def test_targets_are_those_of_the_scan():
    """target_i = y[min(1 + outputs before i, T - 1)], by hand."""
    tokens, targets = windows(1)
    spoken = torch.tensor(
        [[False, True, False, False, True, True, False, True, True]]
    )  # the last position is dropped
    count, wanted = 0, []
    for speaks in spoken[0].tolist():
        wanted.append(int(targets[0, min(1 + count, WINDOW - 1)]))
        count += speaks
    assert CarryOver().targets(tokens, targets, spoken)[0].tolist() == wanted


def test_the_leak_a_carried_target_is_already_among_the_inputs():
    """With every other place skipped, what is scored has been read before; without carrying it never has."""
    text = torch.arange(WINDOW + 1).unsqueeze(0)  # every token is its own place
    tokens, targets = text[:, :-1], text[:, 1:]
    spoken = torch.arange(WINDOW - 1).unsqueeze(0) % 2 == 0
    wanted = CarryOver().targets(tokens, targets, spoken)
    visible = [int(wanted[0, place]) in tokens[0, : place + 1].tolist() for place in range(WINDOW - 1)]
    assert visible == (lags(spoken) >= 0)[0].tolist()
    assert [place for place in range(WINDOW - 1) if visible[place]] == [4, 5, 6, 7, 8]  # two skips are enough
    assert (
        lags(spoken)[0, -1] == 8 - 6
    )  # newest input 8; four outputs before it, so token 1 + 4 of the shifted labels
    everyone = torch.ones_like(spoken)
    assert (lags(everyone) == -2).all() and (lags(everyone, double_shift=False) == -1).all()  # two ahead
    assert (lags(spoken, double_shift=False) >= 0).sum() > (lags(spoken) >= 0).sum()


def test_fixed_intervals_leak_as_well():
    spoken = outputs_at_intervals(127, 2).unsqueeze(0)
    scored = lags(spoken)[spoken]
    assert (scored >= 0).float().mean() == pytest.approx(0.97, abs=0.01) and scored.float().mean() > 25
    assert carried(spoken)[0, :6].tolist() == [1, 2, 2, 3, 3, 4]


def test_the_published_loss_by_hand():
    model, (tokens, targets) = tiny(), windows()
    states = model.states(tokens)[:, :-1]
    logits, gates = model.head(states), model.gate(states)
    total, count = 0.0, 0
    for row in range(len(tokens)):
        skips = done = 0
        for place in range(WINDOW - 1):
            if gates[row, place] > 0.5 or skips == 1:
                label = targets[row, min(1 + done, WINDOW - 1)]
                total, count, done, skips = (
                    total + F.cross_entropy(logits[row, place], label),
                    count + 1,
                    done + 1,
                    0,
                )
            else:
                skips += 1
    probabilities = logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    gate_loss = F.binary_cross_entropy(gates, 1 - entropy.detach() / math.log(VOCABULARY))
    value = CarryOver().loss(model, tokens, targets)
    torch.testing.assert_close(value, total / count + 0.1 * gate_loss)
    nll, outputs_made = CarryOver().score(model, tokens, targets)
    assert outputs_made == count and nll == pytest.approx(float(total.detach()), rel=1e-5)


def test_without_its_flaws_the_published_loss_is_that_of_the_next_token():
    model, (tokens, targets) = tiny(), windows()
    nll, count = CarryOver(carries=False, double_shift=False).score(model, tokens, targets)
    logits = model.head(model.states(tokens))[:, :-1]
    wanted = F.cross_entropy(logits.flatten(0, 1), targets[:, :-1].flatten(), reduction="sum")
    assert count == 4 * (WINDOW - 1) and nll == pytest.approx(float(wanted.detach()), rel=1e-5)
    shifted, _ = CarryOver(carries=False).score(model, tokens, targets)
    ahead = F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")
    assert shifted == pytest.approx(float(ahead.detach()), rel=1e-5)


def test_the_published_loss_of_outputs_gives_the_gate_no_gradient():
    model, (tokens, targets) = tiny(), windows()
    CarryOver(skip_interval=2).loss(model, tokens, targets).backward()
    assert all(weight.grad is None for weight in model.gate.parameters())
    assert all(weight.grad is None for weight in model.project.parameters())  # it learns nothing


# The corrected rule -------------------------------------------------------------------------


def by_hand(model, tokens, targets, spoken_after):
    """Mean over tokens of half the first attempt's and half the spoken one's loss."""
    nll = torch.stack(
        [
            F.cross_entropy(model.head(h).flatten(0, 1), targets.flatten(), reduction="none")
            for h in model.attempts(tokens, 2)
        ]
    )
    return (nll[0] + nll.gather(0, spoken_after.unsqueeze(0))[0]).mean() / 2, nll


@pytest.mark.parametrize("rule", ["evenly", "interval", "straight_through"])
def test_the_corrected_loss_by_hand(rule):
    model, (tokens, targets) = tiny(), windows()
    method = Attempts(rule, max_skip=2, skips_per_token=0.7, balance=0.0)
    gates = torch.stack([model.gate(h).flatten() for h in model.attempts(tokens, 2)[:2]])
    after = []
    for place, row in enumerate(gates.T.tolist()):
        if rule == "evenly":
            t = place % WINDOW
            after.append(min(2, math.floor((t + 1) * 0.7) - math.floor(t * 0.7)))
        elif rule == "interval":
            after.append(2)
        else:
            after.append(next((j for j in range(2) if row[j] > 0.5), 2))
    total, nll = by_hand(model, tokens, targets, torch.tensor(after))
    found = method.loss(model, tokens, targets)
    if rule == "straight_through":  # whose value is that of the spoken attempts once more
        total = total + nll.gather(0, torch.tensor(after).unsqueeze(0)).mean()
    torch.testing.assert_close(found, total)
    score, count = method.score(model, tokens, targets)
    assert score / count == pytest.approx(
        float(nll.gather(0, torch.tensor(after).unsqueeze(0)).mean().detach()), rel=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_some_attempt_is_the_first_to_speak(gates):
    probabilities = _first_to_speak(torch.tensor(gates).unsqueeze(1))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5) and (probabilities >= 0).all()
    left = 1.0
    for place, gate in enumerate(gates):
        assert float(probabilities[place]) == pytest.approx(left * gate, abs=1e-5)
        left *= 1 - gate


def gate_gradients(rule: str, copies: int) -> torch.Tensor:
    """Over as many copies of a batch, each with draws of its own."""
    model, (tokens, targets) = tiny(), windows(8)
    torch.manual_seed(3)
    Attempts(rule, balance=0.0).loss(model, tokens.repeat(copies, 1), targets.repeat(copies, 1)).backward()
    return model.gate.outer.weight.grad.flatten()


def test_the_score_function_is_the_gradient_of_the_expected_loss():
    model, (tokens, targets) = tiny(), windows(8)
    _, nll = by_hand(model, tokens, targets, torch.zeros(tokens.numel(), dtype=torch.long))
    gates = model.gate(model.states(tokens)).flatten()
    nll = nll.detach()
    wanted = torch.autograd.grad((gates * nll[0] + (1 - gates) * nll[1]).mean(), model.gate.outer.weight)[
        0
    ].flatten()
    gradients = gate_gradients("score_function", 300)
    assert F.cosine_similarity(gradients, wanted, dim=0) > 0.9
    assert gradients.norm() == pytest.approx(float(wanted.norm()), rel=0.35)


def test_straight_through_moves_the_gate_towards_the_better_attempt():
    """Its gradient is d loss / d gate = NLL at once minus NLL after a skipped step, through the gate's own
    slope."""
    model, (tokens, targets) = tiny(), windows(8)
    _, nll = by_hand(model, tokens, targets, torch.zeros(tokens.numel(), dtype=torch.long))
    gates = model.gate(model.states(tokens)).flatten()
    wanted = torch.autograd.grad((gates * (nll[0] - nll[1]).detach()).mean(), model.gate.outer.weight)[
        0
    ].flatten()
    torch.testing.assert_close(gate_gradients("straight_through", 1), wanted, rtol=1e-3, atol=1e-6)


def test_rules_that_learn_nothing_leave_the_gate_alone():
    for rule in ("evenly", "interval"):
        assert gate_gradients_or_none(rule) is None


def gate_gradients_or_none(rule: str):
    model, (tokens, targets) = tiny(), windows()
    Attempts(rule).loss(model, tokens, targets).backward()
    assert model.project.weight.grad.abs().sum() > 0  # skipped steps are trained
    return model.gate.outer.weight.grad


@pytest.mark.parametrize("rule", ["straight_through", "score_function"])
def test_the_share_of_skipped_steps_is_kept(rule):
    model, data = tiny(scale=1.0), windows(16)
    method = Attempts(rule, skips_per_token=0.4, balance=10.0)
    torch.manual_seed(0)
    train(
        model,
        method,
        itertools.repeat(data),
        lambda one: mean_score(one, method, *data),
        how=Optimisation(1e-2),
        updates=60,
        look_every=60,
    )
    with torch.no_grad():
        gates = model.gate(model.states(data[0])).flatten().unsqueeze(0)
        skips = 1 - float(method.spoken_after(gates, torch.arange(WINDOW).repeat(16))[0].mean())
    assert skips == pytest.approx(0.4, abs=0.2)


def test_training_keeps_the_best_weights_and_stops_when_patience_ends():
    model, data = tiny(scale=1.0), windows(8)
    method = CarryOver(carries=False, double_shift=False)
    scores = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    seen = []

    def evaluate(one: SelectiveLM) -> float:
        seen.append(one.head.weight.detach().clone())
        return next(scores)

    trained = train(
        model,
        method,
        itertools.repeat(data),
        evaluate,
        how=Optimisation(1e-2),
        updates=10,
        look_every=2,
        patience=2,
    )
    assert (trained.best_look, trained.best_nll) == (2, 2.0)
    assert [update for update, _ in trained.curve] == [2, 4, 6, 8]
    assert torch.equal(model.head.weight, seen[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attempts("courage"), "rule = 'courage' does not decide who speaks"),
        (lambda: Attempts("evenly", max_skip=-1), "max_skip = -1 counts skipped steps"),
        (lambda: CarryOver(max_skip=-1), "max_skip = -1 counts skipped steps"),
        (lambda: CarryOver(skip_interval=0), "skip_interval = 0: every so many places one speaks"),
        (lambda: outputs(torch.zeros(1, 3), 0.5, -3), "max_skip = -3"),
        (
            lambda: train(
                tiny(),
                Attempts("evenly"),
                itertools.repeat(windows()),
                lambda one: math.nan,
                how=Optimisation(1e-3),
                updates=1,
                look_every=1,
            ),
            "lower learning_rate",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
