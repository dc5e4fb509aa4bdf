"""The verdict follows from the numbers by rules, and constructed models get the one they deserve."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from offramp.analysis.advice import WORTH, by_the_clock, propagation, verdict_on
from offramp.analysis.oracle import bounds, can_leave
from offramp.results.suitability import (
    Attainable,
    AttainableBounds,
    Bound,
    BreakEven,
    ExitWorth,
    GainBounds,
    KeptFirst,
    NllRise,
    OracleBounds,
    ReadoutQuality,
    StatePropagation,
)
from tests.analysis.test_suitability import kl


def timed(flops=0.05, clock="shown", seconds=0.1, bounds=(0.08, 0.12), asking=(0.01, 0.03)):
    """Break-even as it is measured."""
    return BreakEven(
        flops=flops,
        clock=clock,
        seconds=seconds,
        seconds_interval=bounds and list(bounds),
        asking_seconds=0.02,
        asking_interval=asking and list(asking),
    )


def measured(
    kind="tuned",
    saving=0.2,
    chance=0.04,
    lead=(0.14, 0.18),
    can_leave=0.4,
    excess=0.2,
    flops=0.05,
    asked=None,
):
    """The exits of a model with one early exit, and what oracles save.

    ``saving``, ``chance`` and ``lead`` are the divergence oracle's saving at 1 % more perplexity, that of
    random exits, and the interval of the difference; ``flops`` is the break-even share, ``asked`` all that
    was measured of it.
    """

    def readout(share, nll, leaving=None):
        quality = ReadoutQuality(
            agreement=share, agreement_interval=None, nll=nll, nll_interval=None, can_leave=leaving
        )
        return {kind: quality}

    early = ExitWorth(
        exit=0,
        layers=2,
        flop_saving=0.5,
        readouts=readout(0.6, 3.0 + excess, can_leave),
        break_even=asked or timed(flops),
    )
    full = ExitWorth(exit=1, layers=6, flop_saving=0.0, readouts=readout(1.0, 3.0))
    bound = Bound(flop_saving=0.55, ppl=20.0)
    gain = GainBounds(least_loss=bound, same_ppl=bound, small_rise=bound, same_prediction=bound)

    def attainable(more):
        return Attainable(
            flop_saving=saving + more,
            interval=[saving + more - 0.02, saving + more + 0.02],
            ppl=20.0,
            random_saving=chance,
            lead_interval=list(lead) if lead else None,
        )

    reached = AttainableBounds(rise_1=attainable(0), rise_3=attainable(0.1), rise_5=attainable(0.2))
    return [early, full], {kind: OracleBounds(gain=gain, attainable=reached)}


ATTAINABLE = (
    r"attainable \(divergence oracle, if full depth is calibrated\) is a saving of at most 20% "
    r"\[18%, 22%\] of the FLOPs at 1% more perplexity, 30% at 3% and 40% at 5%; at 1% "
    r"random exits save 4\.0%, and one who knows the next token \(gain oracle\) could save 55%, which no "
    r"signal can"
)


@pytest.mark.parametrize(
    "changes, verdict, sentence",
    [
        (
            {"saving": 0.04, "chance": 0.0, "lead": (0.03, 0.049)},
            "no",
            r"No: attainable .* saving of at most 4\.0%",
        ),
        (
            {"lead": (0.03, 0.049), "chance": 0.16},
            "no",
            "No, choosing who leaves adds 4.0% of the FLOPs to what chance saves, and 5.0% are worth it: "
            "attainable .* saving of at most 20% .* random exits save 16%",
        ),
        ({"lead": None, "saving": 0.04}, "no", "No: attainable"),
        ({"lead": None}, "worth a try", "Worth a try:"),
        (
            {"lead": (0.03, 0.06)},
            "undecided",
            r"Undecided, measure on more tokens: attainable .* lead of 3\.0% to 6\.0%, and 5\.0% would",
        ),
        ({"lead": (0.03, 0.06), "flops": None}, "no", "No, asking costs more"),
        ({"lead": (WORTH, 0.06)}, "worth a try", "Worth a try:"),
        (
            {"flops": 0.45},
            "no",
            "No, asking costs more than leaving brings back: at exit 0, after layer 2 of 6, 40% of the "
            "tokens can leave at 1% more perplexity, and asking a classifier of the state pays, .* where 45% "
            "do; attainable",
        ),
        ({}, "worth a try", f"^Worth a try: {ATTAINABLE}; at exit 0, .* 40% of the tokens can leave"),
        ({"kind": "raw"}, "worth a try", "Worth a try:"),
        (
            {"kind": "raw", "excess": 2.5},
            "train the exits first",
            r"Not before the exits are trained: .* after layer 2 of 6\) is 2\.50 nats worse .*; attainable",
        ),
        (
            {"kind": "raw", "flops": 0.45},
            "train the exits first",
            "agrees with it on 60% of the tokens",
        ),
        (
            {"kind": "raw", "saving": 0.07, "lead": (0.03, 0.04)},
            "train the exits first",
            "saving of at most 7.0%",
        ),
        ({"kind": "raw", "lead": (0.03, 0.06)}, "undecided", "Undecided"),
        ({"kind": "least_squares"}, "worth a try", "Worth a try:"),
        ({"kind": "least_squares", "excess": 2.5}, "worth a try", "Worth a try:"),
        (
            {"kind": "least_squares", "saving": 0.04, "lead": (0.03, 0.049)},
            "no",
            r"^No, not as it is: attainable .*\. What can change that is training the model for its exits "
            r"\(pretrain\.method: joint\)\.$",
        ),
        (
            {"kind": "least_squares", "flops": 0.45},
            "no",
            r"^No, not as it is, asking costs more .*; attainable .*\. What can change that",
        ),
        ({"kind": "least_squares", "lead": (0.03, 0.06)}, "undecided", "Undecided"),
    ],
)
def test_advice_follows_from_the_numbers(changes, verdict, sentence):
    given, said = verdict_on(*measured(**changes), "state")
    assert given == verdict
    assert re.search(sentence, said), said


def test_the_verdict_reads_no_seconds():
    """All that the clock says is missing from what it is given: reading any of it would be an error."""
    for flops in (0.05, 0.45, None):
        exits, oracle = measured(asked=BreakEven.model_construct(flops=flops))
        said = verdict_on(exits, oracle, "state")
        assert said == verdict_on(*measured(flops=flops), "state")
        assert "clock" not in said[1] and "this machine" not in said[1]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, r"must leave at exit 0 for asking a classifier of the state to pay\.$"),
        ({}, r"By the clock on this machine, 10% \[8\.0%, 12%\] of the tokens"),
        ({"clock": "never", "seconds": None, "bounds": None}, "leaving at exit 0 takes longer than it saves"),
        (
            {"clock": "inconclusive", "seconds": None, "bounds": None, "asking": (-0.02, 0.04)},
            r"timing inconclusive, asking a classifier of the state at exit 0 takes -2\.0% to 4\.0% of",
        ),
        (
            {"clock": "inconclusive", "seconds": None, "bounds": None, "asking": None},
            "timing inconclusive, of too few batches to tell what asking costs",
        ),
    ],
)
def test_what_the_clock_says_stands_beside_the_verdict(asked, sentence):
    exits, oracle = measured(asked=timed(**asked))
    assert re.search(sentence, by_the_clock(exits, oracle, "state"))
    assert verdict_on(exits, oracle, "state")[0] == "worth a try", "whatever the clock says"


TOKENS, VOCABULARY = 3000, 8


def verdict_of_logits(early, full, seed=0):
    """Verdict, sentence and oracles of a model with one early exit, whose text follows ``full``.

    The logits are (TOKENS, VOCABULARY); the exit saves 60 % of the FLOPs and asking there is cheap.
    """
    full, early = full.double().log_softmax(-1), early.double().log_softmax(-1)
    target = torch.multinomial(full.exp(), 1, generator=torch.Generator().manual_seed(seed))
    return verdict_of(early, full, target)


def verdict_of(early, full, target):
    """The same of log-probabilities and targets (TOKENS, 1)."""
    loss = -torch.stack([early, full]).gather(2, target.expand(2, -1, -1)).squeeze(2).numpy()
    argmax = np.stack([early.argmax(-1), full.argmax(-1)])
    divergence = np.stack([kl(full, early).float().numpy(), np.zeros(len(full), np.float32)])
    costs, groups = np.array([0.4, 1.0]), np.arange(len(full)) // 50
    oracle = bounds(loss, argmax, divergence, costs, groups, 200)
    (first, last), _ = measured(
        can_leave=can_leave(divergence[0], *loss), excess=loss[0].mean() - loss[1].mean()
    )
    return *verdict_on([first, last], {"tuned": oracle}, "state"), oracle


def random_logits(seed, scale):
    return scale * torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def sure_of(names):
    """Logits (N, VOCABULARY), as sure everywhere, each of the token that is named (N,)."""
    return torch.nn.functional.one_hot(torch.from_numpy(names), VOCABULARY) * 2.0


def test_a_model_with_easy_tokens_that_can_be_told_is_worth_a_try():
    """On half of the tokens the exit says what full depth says, on the others nothing of it."""
    full = random_logits(0, 2.0)
    easy = (torch.arange(TOKENS) % 2 == 0).unsqueeze(1)
    verdict, said, oracle = verdict_of_logits(torch.where(easy, full, random_logits(1, 1.0)), full)
    assert verdict == "worth a try", said
    assert 0.3 < oracle.attainable.rise_1.flop_saving < 0.33, "easy ones, and a few that are nearly so"
    assert oracle.attainable.rise_1.lead > 0.25


def test_exits_that_only_the_gain_oracle_can_use_are_not():
    """Full depth and exit are sure of different tokens, as much everywhere: no divergence stands out."""
    random = np.random.default_rng(0)
    sure = random.integers(0, VOCABULARY, TOKENS)
    other = (sure + random.integers(1, VOCABULARY, TOKENS)) % VOCABULARY
    verdict, said, oracle = verdict_of_logits(sure_of(other), sure_of(sure))
    assert oracle.gain.small_rise.flop_saving > 0.3, "who knows the next token has much to save"
    assert oracle.attainable.rise_1.flop_saving < 0.01
    assert verdict == "no" and said.startswith("No: attainable"), said


def test_exits_as_good_as_full_depth_on_other_tokens_offer_nothing_to_choose():
    """Either full depth or the exit is right, by a coin: all may leave, and random exits do as well."""
    random = np.random.default_rng(1)
    target, coin = random.integers(0, VOCABULARY, TOKENS), random.permutation(TOKENS) % 2 == 0
    wrong = (target + random.integers(1, VOCABULARY, TOKENS)) % VOCABULARY
    early, full = (
        sure_of(np.where(right, target, wrong)).double().log_softmax(-1) for right in (coin, ~coin)
    )
    verdict, said, oracle = verdict_of(early, full, torch.from_numpy(target).unsqueeze(1))
    assert oracle.gain.least_loss.ppl < 0.5 * oracle.attainable.rise_1.ppl
    assert oracle.attainable.rise_1.flop_saving == pytest.approx(0.6)
    assert verdict == "no" and "adds nothing to what chance saves" in said, said


def test_advice_is_about_the_tuned_exits_where_there_are_any():
    (tuned, oracle), (raw, raw_oracle) = measured(), measured("raw", excess=5.0)
    both = [
        row.model_copy(update={"readouts": row.readouts | other.readouts}) for row, other in zip(tuned, raw)
    ]
    assert verdict_on(both, oracle | raw_oracle, "state") == verdict_on(tuned, oracle, "state")


def test_advice_is_about_fitted_exits_rather_than_raw_ones():
    (fitted, oracle), (raw, raw_oracle) = measured("least_squares"), measured("raw", excess=5.0)
    both = [
        row.model_copy(update={"readouts": other.readouts | row.readouts}) for row, other in zip(fitted, raw)
    ]
    assert verdict_on(both, raw_oracle | oracle, "state") == verdict_on(fitted, oracle, "state")


@pytest.mark.parametrize(
    "every, kept, sentence",
    [
        (0.02, 0.01, r"cost 0\.020 nats per token\."),
        (2.0, 0.05, r"0\.050 if the first of a sequence stays: set routing\.keep_first: 1\."),
        (2.0, 0.5, r"set routing\.keep_first: 1, or routing\.kv: recompute\."),
        (2.0, 1.5, r"and 1\.500 if the first of a sequence stays: set routing\.kv: recompute\."),
    ],
)
def test_advice_on_state_propagation_names_the_setting(every, kept, sentence):
    all_leave, first_stays = (NllRise(nll_rise=rise, interval=None) for rise in (every, kept))
    rises = KeptFirst(keep_first_0=all_leave, keep_first_1=first_stays)
    assert re.search(sentence, propagation(StatePropagation(propagate=rises, drop=rises)))
